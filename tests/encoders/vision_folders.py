"""Folders of vision models as hubs publish them, tiny: configurations and random weights in the published names."""

import json
from dataclasses import replace

import numpy as np
from flax import nnx

from ec_dit.encoders import clip_vision, dino
from tests.encoders.text_folders import write_model


def vision_config(**changes):
    """What config.json of a vision tower alone says."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "image_size": 12,
        "patch_size": 4,
        "hidden_act": "quick_gelu",
        "projection_dim": 12,
        "layer_norm_eps": 1e-5,
    } | changes


def dino_config(**changes):
    """What config.json of a DINOv2 says."""
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "image_size": 20,
        "patch_size": 4,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "layer_norm_eps": 1e-6,
    } | changes


def write_vision(folder, seed=0, **changes):
    """A CLIP vision tower with random weights; with a projection if its architecture has it."""
    found = vision_config(**changes)
    spec = clip_vision.ClipVisionSpec.from_config(found, "config.json")
    if found["architectures"] == ["CLIPVisionModel"]:
        spec = replace(spec, projection=None)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(
        folder,
        found,
        lambda: clip_vision.ClipVision(spec, rngs=nnx.Rngs(0)),
        lambda names: clip_vision.entries(names, spec),
        seed,
    )
    return folder


def write_dino(folder, seed=0, **changes):
    """A DINOv2 with random weights."""
    found = dino_config(**changes)
    spec = dino.DinoSpec.from_config(found, "config.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, found, lambda: dino.Dino(spec, rngs=nnx.Rngs(0)), lambda names: dino.entries(names, spec), seed)
    return folder


def processor_config(**changes):
    """What preprocessor_config.json beside a CLIP says."""
    return {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 224},
    } | changes


def write_processor(folder, **changes):
    """preprocessor_config.json alone."""
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_config(**changes)))
    return folder


def pictures(count, rows, columns, seed=0):
    """Normal pixels (B, Y, X, 3)."""
    return np.random.default_rng(seed).normal(size=(count, rows, columns, 3)).astype(np.float32)


def shaken(model, scale=0.1):
    """A model of transformers with larger than the initial values, so that every part has a say in the output."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn_like(weight))
    return model.eval()


def channels_first(pixels_BYXZ):
    import torch

    return torch.from_numpy(pixels_BYXZ.transpose(0, 3, 1, 2).copy())
