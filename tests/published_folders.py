"""Tiny random transformers of Nucleus-Image and SD3, in the folders that diffusers writes."""

NUCLEUS = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 6,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6),
    "dense_moe_strategy": "leave_first_three_blocks_dense",
    "num_experts": 4,
    "moe_intermediate_dim": 12,
    "capacity_factors": [0, 0, 0, 2.0, 1.0, 1.0],
}
SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 24,
}
SD35 = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


def save(kind, folder, dtype="float32", **changes):
    """diffusers' model, written to `folder`; its weights are larger than the initial ones, so that every part has a say."""
    import diffusers
    import torch

    torch.manual_seed(0)
    name, sizes = {
        "nucleus": ("NucleusMoEImageTransformer2DModel", NUCLEUS),
        "sd3": ("SD3Transformer2DModel", SD3),
    }[kind]
    made = getattr(diffusers, name)
    model = made(**sizes | changes).eval()
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if "experts" in label:  # which diffusers leaves empty
                weight.normal_(0, 0.2)
            else:
                weight.add_(0.05 * torch.randn_like(weight))
    if dtype != "float32":
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return made.from_pretrained(folder, torch_dtype=torch.float32).eval()
