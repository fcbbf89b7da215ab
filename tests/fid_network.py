"""pytorch-fid's own Inception with random weights, and the safetensors file of these."""

import functools

import numpy as np

from tests import fid_tools


@functools.cache
def random_network():
    """pytorch_fid.inception's patched network, 1008 classes included; its numbers stay of the order of 1 to the end."""
    import torch

    inception = fid_tools.load("pytorch_fid.inception")

    class Stop(Exception):
        pass

    made = []

    def instead_of_weights(*_, **__):
        raise Stop

    real, build = inception.load_state_dict_from_url, inception._inception_v3
    inception.load_state_dict_from_url = instead_of_weights
    inception._inception_v3 = lambda *args, **kwargs: made.append(build(*args, **kwargs)) or made[-1]
    try:
        inception.fid_inception_v3()  # patches the network, and would download its weights then
    except Stop:
        pass
    finally:
        inception.load_state_dict_from_url, inception._inception_v3 = real, build
    network = made[0].eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("conv.weight"):
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bn.weight"):
                weight.uniform_(0.7, 1.3, generator=generator)
            elif name.endswith("bn.bias"):
                weight.normal_(0, 0.2, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.7, 1.5, generator=generator)
    return network


def write(path):
    """Saves its weights as safetensors in pytorch-fid's layout."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in random_network().state_dict().items()}, path)
    return path


def features(pictures, device="cpu"):
    """Features of uint8 pictures (B, Y, X, 3) by pytorch-fid's own forward pass on a device, resizing included."""
    import torch

    network, inception = random_network(), fid_tools.load("pytorch_fid.inception")
    real = inception.fid_inception_v3
    inception.fid_inception_v3 = lambda: network
    try:
        model = inception.InceptionV3([3]).eval().to(device)
    finally:
        inception.fid_inception_v3 = real
    batch = torch.from_numpy(np.asarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return model(batch)[0][:, :, 0, 0].cpu().numpy()
