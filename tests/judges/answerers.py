"""Folders of networks that answer questions, as transformers publishes them: tiny, with random weights."""

WORDS = "yes no is there a the red blue cube disc on left of table cat dog two ? . , user assistant Answer with or Yes No".split()
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(word.lower() for word in WORDS[:20]), "##s"]
IMAGE = "<|image_pad|>"
CHAT = ["[UNK]", "<pad>", "<start>", "<end>", IMAGE, "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", *WORDS]
TEMPLATE = (
    "{% for message in messages %}<start> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{% else %} {{ part['text'] }}{% endif %}{% endfor %} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert_tokenizer(folder):
    import transformers

    (folder / "vocab.txt").write_text("\n".join(BERT))
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))


def chat_tokenizer():
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"unk_token": "[UNK]", "pad_token": "<pad>", "eos_token": "<end>"}
    known = {word: i for i, word in enumerate(CHAT)}
    words = Tokenizer(models.WordLevel(known, special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=CHAT[2:8], **special
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def blip(folder):
    import transformers

    text = {**NARROW, "vocab_size": len(BERT), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    text |= {"bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**NARROW, "image_size": 32, "patch_size": 8}
    model = transformers.BlipForQuestionAnswering(transformers.BlipConfig(text_config=text, vision_config=vision))
    processor = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    return model, [transformers.BlipProcessor(processor, bert_tokenizer(folder))]


def vilt(folder):
    import transformers

    labels = dict(enumerate(["yes", "no", "Two", "red"]))
    sizes = {**NARROW, "vocab_size": len(BERT), "image_size": 32, "patch_size": 8, "max_position_embeddings": 14}
    config = transformers.ViltConfig(**sizes, id2label=labels, label2id={word: i for i, word in labels.items()})
    processor = transformers.ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    tokenizer = bert_tokenizer(folder)
    return transformers.ViltForQuestionAnswering(config), [transformers.ViltProcessor(processor, tokenizer)]


def qwen(folder):
    import transformers

    text = {**NARROW, "vocab_size": len(CHAT), "num_key_value_heads": 2, "pad_token_id": 1, "eos_token_id": 3}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    tokens = {"image_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6, "video_token_id": 7}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    processor = transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace(IMAGE, f"<|vision_start|>{IMAGE}<|vision_end|>")
    return transformers.Qwen2VLForConditionalGeneration(config), [processor, tokenizer]


def llava(folder):
    import transformers

    text = {**NARROW, "vocab_size": len(CHAT), "model_type": "llama", "pad_token_id": 1, "eos_token_id": 3}
    vision = {**NARROW, "image_size": 32, "patch_size": 8, "model_type": "clip_vision_model", "projection_dim": 16}
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=4, vision_feature_select_strategy="default"
    )
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    image = {"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(**size),
        chat_tokenizer(),
        chat_template=TEMPLATE,
        **image | {"image_token": IMAGE},
    )
    return transformers.LlavaForConditionalGeneration(config), [processor]


def save(folder, make):
    """Writes a network of random weights, large enough for all of the input to have a say in the answer."""
    import torch
    import transformers

    folder.mkdir()
    torch.manual_seed(3)
    model, parts = make(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight))
    sampled = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.3}  # as published ones recommend
    model.generation_config = transformers.GenerationConfig(**sampled, eos_token_id=3, pad_token_id=1)
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder
