"""Tiny random PixArt models in the folders that diffusers writes."""

SIZES = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 32,
    "caption_channels": 10,
    "sample_size": 8,
    "patch_size": 2,
}


def save_transformer(folder, dtype="float32", **changes):
    """diffusers' model, written to `folder`; its weights are larger than the initial ones, so that every part has a say."""
    import torch
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(**SIZES | changes).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    if dtype != "float32":
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
