"""A folder of a Mask2Former as hubs publish it, tiny, with random weights."""

from ec_dit.layouts.geneval import CLASSES

COCO = [
    {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}.get(name, name)
    for name in CLASSES
]
QUERIES = 7


def write_mask2former(folder):
    """Saves it; returns the model. Its weights are large enough that masks and classes differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages, drop_path_rate=0.0
    )
    widths = dict.fromkeys(("hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32)
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=QUERIES,
        id2label=dict(enumerate(COCO)),
        **widths,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_predictor" in name or "mask_embedder" in name or "queries" in name:
                weight.mul_(5.0)
    model.save_pretrained(folder)
    return model
