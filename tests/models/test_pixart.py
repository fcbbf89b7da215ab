"""A dense DiT with the weights of a tiny random PixArt-alpha gives the outputs of diffusers' implementation.

`OUTSIDE` and `BLOCK` say where each of our parameters comes from. Together they name every parameter of both models.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.models.dit import DiT
from ec_dit.models.spec import DiTSpec
from ec_dit.nn import param
from ec_dit.nn.embeddings import unpatchify
from ec_dit.nn.routing import RoutingSpec

Transform = Callable[[np.ndarray, DiTSpec], np.ndarray]


def same(w, spec):
    return w


def transposed(w, spec):
    """torch's Linear keeps (out, in)."""
    return w.T


def patches(w, spec):
    """A convolution's (D, Z, row, column) as a matrix from (row, column, Z)."""
    return w.transpose(2, 3, 1, 0).reshape(-1, spec.width)


def heads_out(w, spec):
    return w.T.reshape(-1, spec.num_heads, spec.head_dim)


def heads_in(w, spec):
    return w.T.reshape(spec.num_heads, spec.head_dim, spec.width)


def head_bias(b, spec):
    return b.reshape(spec.num_heads, spec.head_dim)


def six(w, spec):
    return w.T.reshape(spec.width, 6, spec.width)


def six_bias(b, spec):
    return b.reshape(6, spec.width)


OUTSIDE: dict[str, tuple[str, Transform]] = {
    "patch_embed/w_PD": ("pos_embed.proj.weight", patches),
    "patch_embed/b_D": ("pos_embed.proj.bias", same),
    "time_embed/mlp/w_up_DF": ("adaln_single.emb.timestep_embedder.linear_1.weight", transposed),
    "time_embed/mlp/b_up_F": ("adaln_single.emb.timestep_embedder.linear_1.bias", same),
    "time_embed/mlp/w_down_FD": ("adaln_single.emb.timestep_embedder.linear_2.weight", transposed),
    "time_embed/mlp/b_down_D": ("adaln_single.emb.timestep_embedder.linear_2.bias", same),
    "time_modulation/w_IAD": ("adaln_single.linear.weight", six),
    "time_modulation/b_AD": ("adaln_single.linear.bias", six_bias),
    "text_projection/w_up_DF": ("caption_projection.linear_1.weight", transposed),
    "text_projection/b_up_F": ("caption_projection.linear_1.bias", same),
    "text_projection/w_down_FD": ("caption_projection.linear_2.weight", transposed),
    "text_projection/b_down_D": ("caption_projection.linear_2.bias", same),
    "out_modulation/b_AD": ("scale_shift_table", same),
    "w_out_DP": ("proj_out.weight", transposed),
    "b_out_P": ("proj_out.bias", same),
}
ATTENTION: dict[str, tuple[str, Transform]] = {
    "w_q_DHK": ("to_q.weight", heads_out),
    "b_q_HK": ("to_q.bias", head_bias),
    "w_k_MNK": ("to_k.weight", heads_out),
    "b_k_NK": ("to_k.bias", head_bias),
    "w_v_MNK": ("to_v.weight", heads_out),
    "b_v_NK": ("to_v.bias", head_bias),
    "w_o_HKD": ("to_out.0.weight", heads_in),
    "b_o_D": ("to_out.0.bias", same),
}
BLOCK: dict[str, tuple[str, Transform]] = {
    "modulation/b_AD": ("scale_shift_table", same),
    **{f"attention/{ours}": (f"attn1.{theirs}", how) for ours, (theirs, how) in ATTENTION.items()},
    **{f"cross_attention/{ours}": (f"attn2.{theirs}", how) for ours, (theirs, how) in ATTENTION.items()},
    "ffn/w_up_DF": ("ff.net.0.proj.weight", transposed),
    "ffn/b_up_F": ("ff.net.0.proj.bias", same),
    "ffn/w_down_FD": ("ff.net.2.weight", transposed),
    "ffn/b_down_D": ("ff.net.2.bias", same),
}


def load(params, weights, spec):
    """`params` with the values of `weights`, a torch state dict as NumPy arrays. Every entry of it is used once."""
    weights = dict(weights)

    def value(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in OUTSIDE:
            theirs, transform = OUTSIDE[name]
            array = transform(weights.pop(theirs), spec)
        else:
            theirs, transform = BLOCK[name.removeprefix("stages/0/blocks/0/")]
            blocks = [weights.pop(f"transformer_blocks.{i}.{theirs}") for i in range(spec.num_blocks)]
            array = np.stack([transform(block, spec) for block in blocks])
        assert array.shape == leaf.shape, (name, array.shape, leaf.shape)
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(value, params)
    assert not weights, f"not used: {sorted(weights)}"
    return params


CASES = {
    "learned sigma": {"out_channels": 8},
    "large patches of pixels": {"num_blocks": 3, "latent_size": 16, "patch": 4, "channels": 3, "out_channels": 3},
    "interpolated positions": {"num_heads": 3, "position_scale": 2.0},
    "another resolution": {"rows": 12, "columns": 12},
    "text as it is": {"text_projection": False, "head_dim": 12},
}


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_diffusers(case):
    import torch
    from diffusers import PixArtTransformer2DModel

    sizes = {
        "num_blocks": 2,
        "num_heads": 4,
        "head_dim": 8,
        "latent_size": 8,
        "text_width": 10,
        "text_projection": True,
    }
    sizes |= CASES[case]
    rows, columns = (sizes.pop(side, sizes["latent_size"]) for side in ("rows", "columns"))
    width, kv_heads = sizes["num_heads"] * sizes["head_dim"], sizes["num_heads"]
    spec = DiTSpec(width=width, num_kv_heads=kv_heads, modulation="adaln_single", bias=True, **sizes)
    config = {
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.head_dim,
        "in_channels": spec.channels,
        "out_channels": spec.out_channels,
        "num_layers": spec.num_blocks,
        "cross_attention_dim": spec.width if spec.text_projection else spec.text_width,
        "caption_channels": spec.text_width if spec.text_projection else None,
        "sample_size": spec.latent_size,
        "patch_size": spec.patch,
        "interpolation_scale": spec.position_scale,
    }
    torch.manual_seed(0)
    pixart = PixArtTransformer2DModel(**config).eval()
    with torch.no_grad():  # larger than the initial values, so that every part has a say in the output
        for weight in pixart.parameters():
            weight.add_(0.1 * torch.randn_like(weight))

    graphdef, params, _ = param.split(nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0))))
    params = load(params, {name: weight.numpy() for name, weight in pixart.state_dict().items()}, spec)

    rng = np.random.default_rng(0)
    x_BYXZ = rng.normal(size=(3, rows, columns, spec.channels)).astype(np.float32)
    text_BTM = rng.normal(size=(3, 7, spec.text_width)).astype(np.float32)
    mask_BT = np.arange(7) < np.array([[7], [4], [1]])
    t_B = np.array([0.0, 0.371, 0.999], np.float32)

    out_BSP, _ = jax.jit(lambda *args: nnx.merge(graphdef, args[0])(*args[1:], routing=RoutingSpec()))(
        params, x_BYXZ, t_B, text_BTM, mask_BT
    )
    out_BYXZ = unpatchify(out_BSP, spec.patch, rows // spec.patch, columns // spec.patch)
    with torch.no_grad():
        expected = pixart(
            torch.from_numpy(x_BYXZ.transpose(0, 3, 1, 2).copy()),
            encoder_hidden_states=torch.from_numpy(text_BTM),
            timestep=torch.from_numpy(1000 * t_B),
            encoder_attention_mask=torch.from_numpy(mask_BT),
        ).sample.numpy()
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(out_BYXZ, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
