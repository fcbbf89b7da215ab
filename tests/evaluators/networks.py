"""Folders of whole CLIPs, tiny, with random weights, as transformers publishes them."""

from ec_dit.encoders.clip_tokenizer import ClipTokenizer
from tests.encoders.text_folders import clip_config, write_clip_tokenizer
from tests.encoders.vision_folders import shaken, write_processor

SIDE = 12  # pixels that it reads


def write_clip(folder, seed=0):
    """Saves a CLIPModel with tokenizer and processor; returns the model."""
    import torch
    import transformers

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 4}
    write_clip_tokenizer(folder)
    end = ClipTokenizer.load(folder).eos_id
    text = transformers.CLIPTextConfig(**clip_config(eos_token_id=end, bos_token_id=end - 1)).to_dict()
    model = shaken(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    )
    model.save_pretrained(folder)
    write_processor(folder, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return model
