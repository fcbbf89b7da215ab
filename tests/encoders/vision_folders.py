"""Folders of vision models as hubs publish them, tiny: configurations and random weights in the published names."""

import json


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
