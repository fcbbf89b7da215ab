"""The text tower of Qwen3 and Qwen3-VL, tiny and random, against transformers: states of any layer, tokens, chats, meshes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ec_dit.core import hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.data.captions import CaptionSpec
from ec_dit.encoders.qwen3 import Qwen3Spec
from ec_dit.encoders.qwen3_tokenizer import Qwen3Tokenizer
from ec_dit.encoders.text import TextEncoder, TextEncoders
from tests.encoders.text_folders import AWKWARD, CAPTIONS, COMPOSED

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("qwen3")]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n"
SIZES = {
    "vocab_size": 480,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-6,
}


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def write_tokenizer(folder):
    """tokenizer.json as Qwen publishes it: pairs of bytes, NFC, tokens of chats."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([*CAPTIONS, *AWKWARD] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2TokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tower in a whole Qwen3-VL with its tokenizer in a folder `processor` beside it, and a Qwen3 with its own."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    root = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    seen |= {"deepstack_visual_indexes": [0]}
    whole = Qwen3VLConfig(text_config=SIZES | {"rope_parameters": rope}, vision_config=seen)
    plain = Qwen3Config(
        **SIZES, rope_parameters={"rope_type": "default", "rope_theta": 300.0}, tie_word_embeddings=False
    )
    models_of = {
        "vl/text_encoder": Qwen3VLForConditionalGeneration(whole),
        "plain": Qwen3ForCausalLM(plain),
    }
    for name, model in models_of.items():
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.15 * torch.randn_like(weight))
        model.eval().save_pretrained(root / name)
        write_tokenizer(root / ("vl/processor" if name.startswith("vl") else name))
    return root


def theirs(folders, name, texts, length):
    """(hidden states of all layers, ids, mask) by transformers, filled up behind."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

    place = folders / ("vl/processor" if name.startswith("vl") else name)
    how = {"pad_token": SPECIAL[0], "padding_side": "right"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"), **how)
    given = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    kind = Qwen3VLForConditionalGeneration if name.startswith("vl") else Qwen3ForCausalLM
    model = kind.from_pretrained(folders / name).eval()
    with torch.no_grad():
        out = model(given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True)
    return [state.numpy() for state in out.hidden_states], given.input_ids.numpy(), given.attention_mask.bool().numpy()


@pytest.mark.parametrize("name", ["vl/text_encoder", "plain"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_states_of_any_layer_equal_transformers(folders, name, layer):
    texts = [text for text in CAPTIONS if text]
    states, _, mask_BT = theirs(folders, name, texts, 24)
    expected_BTM = states[-1 - layer]
    out = TextEncoders.load([folders / name], 24, one_device(), spec=CaptionSpec(layer=layer)).encode(texts)
    np.testing.assert_array_equal(out.mask_BT, mask_BT)
    assert out.pooled_BM is None and out.text_BTM.shape[-1] == 32
    np.testing.assert_allclose(out.text_BTM[mask_BT], expected_BTM[mask_BT], rtol=1e-4, atol=1e-4)
    assert np.abs(expected_BTM[mask_BT]).std() > 0.1


def test_a_mesh_gives_what_one_device_does(folders):
    path, spec = folders / "vl" / "text_encoder", CaptionSpec(layer=1, template=CHAT)
    wanted = TextEncoders.load([path], 24, one_device(), spec=spec).encode(CAPTIONS)
    for shape in ((2, 2, 1, 2), (1, 4, 2, 1)):
        out = TextEncoders.load([path], 24, make_mesh(shape), spec=spec).encode(CAPTIONS)
        np.testing.assert_allclose(out.text_BTM, wanted.text_BTM, rtol=1e-4, atol=1e-5)


def test_a_chat_round_a_caption(folders):
    """Its special tokens are tokens, and the empty caption is a chat too."""
    encoder = TextEncoder(folders / "plain", one_device())
    expected = encoder.encode([CHAT.replace("{caption}", caption) for caption in ("a cat", "")], 40)
    spec = CaptionSpec(template=CHAT, lower=True)
    encoders = TextEncoders.load([folders / "plain"], 40, one_device(), spec=spec)
    out = encoders.encode(["A CAT ", ""])
    np.testing.assert_allclose(out.text_BTM, expected.text_BTM, rtol=1e-5, atol=1e-5)
    assert out.mask_BT[1].sum() == len(Qwen3Tokenizer(folders / "plain")._encode(CHAT.replace("{caption}", "")))
    assert encoders.cut(["a cat", "a cat " * 40]) == 1


def test_ids_equal_transformers(folders):
    tokenizer, texts = (
        Qwen3Tokenizer(folders / "plain"),
        [*CAPTIONS, *AWKWARD, *COMPOSED, "<|im_start|>x<|im_end|> <|im"],
    )
    texts = [text for text in texts if text]
    _, ids_BT, mask_BT = theirs(folders, "plain", texts, 40)
    ours = tokenizer.encode(texts, 40)
    np.testing.assert_array_equal(ours[1], mask_BT)
    np.testing.assert_array_equal(ours[0], ids_BT)
    assert tokenizer.encode([""], 3)[1].tolist() == [[True, False, False]]


def test_bfloat16_stays_near(folders):
    exact = TextEncoder(folders / "plain", one_device()).encode(CAPTIONS, 24)
    near = TextEncoder(folders / "plain", one_device(), jnp.bfloat16).encode(CAPTIONS, 24)
    difference = np.abs(near.text_BTM - exact.text_BTM)[exact.mask_BT]
    assert 0 < difference.max() < 0.1 * np.abs(exact.text_BTM[exact.mask_BT]).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; supported: False"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'; supported: 'default', 'mrope'"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
    ],
)
def test_other_configs_are_refused(folders, changes, message):
    found = hub.config(folders / "plain")
    Qwen3Spec.from_config(found, "here")
    with pytest.raises(UserError, match=message):
        Qwen3Spec.from_config(found | changes, "here")


def test_mistakes(folders):
    with pytest.raises(UserError, match="there are 5 layers; none lies 5 before the last"):
        TextEncoder(folders / "plain", one_device(), layer=5)
