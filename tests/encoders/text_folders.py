"""Folders as hubs publish them, tiny: configurations, random weights in the published names, and tokenizers."""

import functools
import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax import nnx
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from ec_dit.core import export, name_map
from ec_dit.core.tree import named_leaves
from ec_dit.encoders import clip, t5
from ec_dit.nn import param

CAPTIONS = ["a cat", "two red discs and 3 blue cubes, on a table!", "", "it's the café: naïve, façade"]
AWKWARD = [
    *CAPTIONS,
    "   ",
    " leading and trailing  ",
    "two  spaces   and four",
    "a line\nanother\r\n\r\nand\ta tab",
    "\u00a0no-break\u00a0and\u3000wide spaces\u2028",
    "👩\u200d👩\u200d👧 a family, ❤️ and 🐱🐱🐱 🇩🇪",
    "\uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48 ﬁne ½ Ⅳ ㌔ ﷺ",
    "cafe\u0301 n\u0303 \u0301",
    "日本語のテキスト 한국어 हिन्दी العربية",
    "\ufeffzero\u200bwidth\u200djoiner soft\u00adhyphen bell\u0007 null\x00",
    "▁ a▁cat",
    "SHOUTING İSTANBUL Straße",
    "they're we'll I'D don't 'quoted' \"twice\"",
    "wow!!! great! ! 12345 a_b-c/d\\e #tag @user http://x.y/z?q=1&r=2",
    "long " * 200,
]
COMPOSED = ["e\u0302\u0301", "d\u0323\u0307", "\uff45\u0301", "①\u0336", "\u1112\u1161\u11ab"]  # of several characters
SPELLED_OUT = ["</s>", "a </s> cat", "a</s>cat", "<pad>", "<unk> x", "<extra_id_0>", "a<extra_id_99> b"]
CLIP_SPELLED_OUT = ["<|endoftext|>", "a <|endoftext|> cat", "a<|startoftext|>cat", "<|ENDOFTEXT|>", "! !a! !!"]
START, END = "<|startoftext|>", "<|endoftext|>"


def t5_config(**changes):
    """What config.json of a v1.1 says."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": 480,
        "d_model": 16,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": 3,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "layer_norm_epsilon": 1e-6,
    } | changes


def clip_config(**changes):
    """What config.json of a text tower alone says."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": 800,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "hidden_act": "quick_gelu",
        "projection_dim": 12,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
    } | changes


def write_t5(folder, seed=0, **changes):
    """A T5 encoder with random weights, and its tokenizer."""
    found = t5_config(**changes)
    spec = t5.T5Spec.from_config(found, "config.json")
    write_model(
        folder, found, lambda: t5.T5Encoder(spec, rngs=nnx.Rngs(0)), lambda names: t5.entries(names, spec), seed
    )
    write_t5_tokenizer(folder)
    return folder


def write_clip(folder, seed=0, pad=END, **changes):
    """A CLIP text tower with random weights, and its tokenizer; with a projection if its architecture has it."""
    found = clip_config(**changes)
    spec = clip.ClipSpec.from_config(found, "config.json")
    if found["architectures"] == ["CLIPTextModel"]:
        spec = replace(spec, projection=None)
    write_model(
        folder, found, lambda: clip.ClipText(spec, rngs=nnx.Rngs(0)), lambda names: clip.entries(names, spec), seed
    )
    write_clip_tokenizer(folder, pad)
    return folder


def write_model(folder, found, make, entries, seed):
    """config.json, and random weights of the module that `make` builds."""
    _, shapes, _ = param.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    export.write(folder, "model", name_map.tensors(tree, entries([name for name, _ in named_leaves(tree)])))
    (folder / "config.json").write_text(json.dumps(found))


def write_t5_tokenizer(folder):
    """spiece.model with T5's ids and normalisation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_unigram())
    return folder


def write_t5_json(folder):
    """tokenizer.json alone, of the same pieces; its normalisation is only about that of T5."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=_unigram())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(3)  # both are the caller's here
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": {"content": "<pad>"}}))
    return folder


@functools.cache
def _unigram():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=model,
        model_type="unigram",
        vocab_size=480,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_clip_tokenizer(folder, pad=END, files="vocab.json"):
    """The files of a CLIP tokenizer.

    Args:
        pad: token that pads.
        files: 'vocab.json': with merges.txt and the files of 2022 that name the special tokens; 'added': the same with
            the list of special tokens of 2023; 'tokenizer.json': that file, of the library itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _pairs()
    plain = {"lstrip": False, "rstrip": False, "single_word": False}
    special = {token: {"content": token, "normalized": True, **plain} for token in (START, END)}
    roles = {"bos_token": special[START], "eos_token": special[END], "unk_token": special[END], "pad_token": pad}
    added = {str(vocab[token]): flags | {"special": True} for token, flags in special.items()}
    if pad not in special:
        added[str(vocab[pad])] = {"content": pad, "normalized": False, "special": True, **plain}
    config = {"model_max_length": 20, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    if files == "tokenizer.json":
        whole = json.loads(_trained().to_str())
        whole["model"] |= {"vocab": vocab, "merges": [" ".join(pair) for pair in merges], "unk_token": END}
        whole["added_tokens"] = [{"id": int(number), **flags} for number, flags in added.items()]
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    else:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if files == "vocab.json":
        (folder / "special_tokens_map.json").write_text(json.dumps(roles))
        typed = {
            role: token if isinstance(token, str) else {"__type": "AddedToken", **token}
            for role, token in roles.items()
        }
        config |= typed
    else:
        names = {role: token if isinstance(token, str) else token["content"] for role, token in roles.items()}
        config |= names | {"added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@functools.cache
def _pairs():
    """(piece -> id in CLIP's order, merges): signs, signs that end a word, merged pieces, special tokens."""
    merges = [tuple(pair) for pair in json.loads(_trained().to_str())["model"]["merges"]]
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(pair) for pair in merges), START, END]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, merges


@functools.cache
def _trained():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus():
    colors, shapes = "red green blue yellow black white purple".split(), "circle square disc cube family cat".split()
    sentences = [f"a {color} {shape} and two {other}s" for color in colors for shape in shapes for other in shapes]
    texts = [*AWKWARD, *COMPOSED]
    return [*sentences * 3, *(text for text in texts if text.strip() and len(text) < 200 and "\x00" not in text)]
