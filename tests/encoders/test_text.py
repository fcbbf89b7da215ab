"""Published folders to embeddings of captions: joined as PixArt, SD3 and Flux do, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.data.captions import CaptionSpec
from ec_dit.encoders.text import TextEncoder, TextEncoders
from tests.encoders.text_folders import (
    CAPTIONS,
    END,
    t5_config,
    write_clip,
    write_clip_tokenizer,
    write_t5,
    write_t5_tokenizer,
)

pytestmark = pytest.mark.slow

BIG_G = {"pad": "!", "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 24}
T5_WIDTH = 48  # the widest


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline's folder in diffusers' layout: CLIP-L, bigG and T5, each with its tokenizer beside it."""
    root = tmp_path_factory.mktemp("pipeline")
    write_clip(root / "text_encoder", seed=1)
    write_clip(root / "text_encoder_2", seed=2, **BIG_G)
    write_t5(root / "text_encoder_3", d_model=T5_WIDTH)
    for number in ("", "_2", "_3"):
        (root / f"tokenizer{number}").mkdir()
        for file in [*(root / f"text_encoder{number}").iterdir()]:
            if file.name != "config.json" and file.suffix != ".safetensors":
                shutil.move(file, root / f"tokenizer{number}")
    (root / "model_index.json").write_text("{}")
    return root


def paths(pipeline, *numbers):
    return [pipeline / f"text_encoder{number}" for number in numbers]


def test_t5_alone(pipeline):
    encoders = TextEncoders.load(paths(pipeline, "_3"), 12, one_device())
    assert (encoders.width, encoders.length, encoders.pooled_width) == (T5_WIDTH, 12, 0)
    out = encoders.encode(CAPTIONS)
    assert out.text_BTM.shape == (4, 12, T5_WIDTH) and out.text_BTM.dtype == np.float32 and out.pooled_BM is None
    assert out.mask_BT.shape == (4, 12) and out.mask_BT[2].sum() == 1 and out.mask_BT[1].all()


@pytest.mark.parametrize("number", ["", "_2"])
def test_one_clip_gives_its_last_states(pipeline, number):
    (path,) = paths(pipeline, number)
    encoders = TextEncoders.load([path], 20, one_device())
    assert encoders.length == 20
    assert (encoders.width, encoders.pooled_width) == ((24, 12) if number else (16, 16))
    out = encoders.encode(CAPTIONS)
    wanted = TextEncoder(path, one_device()).encode(CAPTIONS, 20, "last")
    for ours, theirs in zip(out, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if not number:  # pooled is the last state of the end-of-text token
        ends = out.mask_BT.sum(1) - 1
        states_BM = out.text_BTM[np.arange(4), ends]
        assert np.abs(states_BM).max() > 0.5
        np.testing.assert_allclose(
            out.pooled_BM, states_BM, rtol=1e-6, atol=1e-7
        )  # what rounds a sum of numbers near 1


def test_joined_as_sd3_and_as_flux(pipeline):
    mesh, numbers = one_device(), ("", "_2", "_3")
    large, big_g, t5 = (TextEncoder(path, mesh) for path in paths(pipeline, *numbers))
    a, b = large.encode(CAPTIONS, 14, "penultimate"), big_g.encode(CAPTIONS, 14, "penultimate")
    c = t5.encode(CAPTIONS, 9)

    sd3 = TextEncoders([large, big_g, t5], [14, 14, 9], mesh, batch_size=4)
    assert (sd3.width, sd3.length, sd3.pooled_width) == (T5_WIDTH, 23, 16 + 12)
    out = sd3.encode(CAPTIONS)
    np.testing.assert_array_equal(out.text_BTM[:, :14, :16], a.text_BTM)
    np.testing.assert_array_equal(out.text_BTM[:, :14, 16:40], b.text_BTM)
    assert not out.text_BTM[:, :14, 40:].any()
    np.testing.assert_array_equal(out.text_BTM[:, 14:], c.text_BTM)
    np.testing.assert_array_equal(out.mask_BT, np.concatenate([a.mask_BT, c.mask_BT], 1))
    np.testing.assert_array_equal(out.pooled_BM, np.concatenate([a.pooled_BM, b.pooled_BM], 1))

    sdxl = TextEncoders([large, big_g], [14, 14], mesh, batch_size=4)
    assert (sdxl.width, sdxl.length) == (40, 14)
    np.testing.assert_array_equal(sdxl.encode(CAPTIONS).text_BTM, out.text_BTM[:, :14, :40])

    flux = TextEncoders([large, t5], [14, 9], mesh, CaptionSpec(join="flux"), batch_size=4)
    assert (flux.width, flux.length, flux.pooled_width) == (T5_WIDTH, 9, 16)
    for ours, theirs in zip(flux.encode(CAPTIONS), (c.text_BTM, c.mask_BT, a.pooled_BM), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("join", ["sd3", pytest.param("flux", marks=pytest.mark.exhaustive)])
def test_a_mesh_gives_what_one_device_does(pipeline, join):
    every = paths(pipeline, "", "_2", "_3")
    wanted = TextEncoders.load(every, 36, one_device(), spec=CaptionSpec(join=join)).encode(CAPTIONS)
    assert wanted.text_BTM.shape[1] == 36  # CLIP 20 and T5 16, or T5 alone
    for shape in ((1, 2, 2, 2), (4, 2, 1, 1)):
        out = TextEncoders.load(every, 36, make_mesh(shape), spec=CaptionSpec(join=join), batch_size=1).encode(CAPTIONS)
        for ours, theirs in zip(out, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_any_number_of_captions_is_one_compilation(pipeline):
    encoders = TextEncoders.load(paths(pipeline, "", "_3"), [16, 8], one_device(), batch_size=3)
    many = [f"{caption} {number}" for number in range(2) for caption in CAPTIONS]
    whole = encoders.encode(many)
    for start, end in ((0, 1), (3, 7), (0, 0)):
        for part, of_all in zip(encoders.encode(many[start:end]), whole, strict=True):
            np.testing.assert_allclose(part, of_all[start:end], rtol=1e-5, atol=1e-6)
    assert [encoder._forward._cache_size() for encoder in encoders._encoders] == [1, 1]
    assert TextEncoders.load(paths(pipeline, "_3"), 8, make_mesh((2, 2, 2, 1)), batch_size=9).batch_size == 16


def test_bfloat16_is_near(pipeline):
    every = paths(pipeline, "", "_2", "_3")
    exact = TextEncoders.load(every, 36, one_device()).encode(CAPTIONS)
    near = TextEncoders.load(every, 36, one_device(), jnp.bfloat16).encode(CAPTIONS)
    assert near.text_BTM.dtype == near.pooled_BM.dtype == np.float32
    assert 0 < np.abs(near.text_BTM - exact.text_BTM).max() < 0.1 * exact.text_BTM.std()
    assert 0 < np.abs(near.pooled_BM - exact.pooled_BM).max() < 0.1 * exact.pooled_BM.std()


@pytest.mark.extra("conformance")
def test_joined_as_transformers_joined_by_hand(pipeline, tmp_path):
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    def encode(kind, tokenizer, number, length, masked):
        tokens = tokenizer.from_pretrained(pipeline / f"tokenizer{number}")(
            CAPTIONS, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        model = kind.from_pretrained(pipeline / f"text_encoder{number}").eval()
        given = {"attention_mask": tokens.attention_mask} if masked else {"output_hidden_states": True}
        with torch.no_grad():
            return model(tokens.input_ids, **given), tokens.attention_mask.bool().numpy()

    a, mask_BT = encode(CLIPTextModel, CLIPTokenizer, "", 20, masked=False)
    b, _ = encode(CLIPTextModelWithProjection, CLIPTokenizer, "_2", 20, masked=False)
    c, t5_mask_BT = encode(T5EncoderModel, T5Tokenizer, "_3", 30, masked=True)
    clips = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1)
    clips = torch.nn.functional.pad(clips, (0, T5_WIDTH - clips.shape[-1]))
    joined_BTM = torch.cat([clips, c.last_hidden_state], -2).numpy()
    pooled_BM = torch.cat([a.pooler_output, b.text_embeds], -1).numpy()

    def assert_near(out, *wanted):
        for ours, theirs in zip(out, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    every = paths(pipeline, "", "_2", "_3")
    out = TextEncoders.load(every, [20, 20, 30], make_mesh((1, 2, 2, 2))).encode(CAPTIONS)
    assert_near(out, joined_BTM, np.concatenate([mask_BT, t5_mask_BT], 1), pooled_BM)
    out = TextEncoders.load([every[2], every[0]], [30, 20], one_device(), spec=CaptionSpec(join="flux")).encode(
        CAPTIONS
    )
    assert_near(out, c.last_hidden_state.numpy(), t5_mask_BT, a.pooler_output.numpy())
    c, _ = encode(T5EncoderModel, T5Tokenizer, "_3", 30, masked=False)  # as SD3's own pipeline reads padding
    read = CaptionSpec(padding="read")
    out = TextEncoders.load(every, [20, 20, 30], one_device(), spec=read).encode(CAPTIONS)
    assert_near(out, torch.cat([clips, c.last_hidden_state], -2).numpy(), np.ones((len(CAPTIONS), 50), bool), pooled_BM)
    out = TextEncoders.load(every[:1], 20, one_device()).encode(CAPTIONS)
    assert_near(out, a.last_hidden_state.numpy(), mask_BT, a.pooler_output.numpy())


@pytest.mark.extra("conformance")
def test_captions_that_any_encoder_cuts_are_counted(pipeline):
    """As the tokenizers of transformers count, for lengths that one of the two cuts, the other, both and neither."""
    from transformers import CLIPTokenizer, T5Tokenizer

    captions = [*CAPTIONS, *(f"a red circle{' and two cats' * number}" for number in range(6)), "SHOUTING: STOP!!"]
    clip = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")(captions)["input_ids"]
    t5 = T5Tokenizer.from_pretrained(pipeline / "tokenizer_3")(captions)["input_ids"]
    counted = set()
    for lengths in ((20, 500), (9, 500), (20, 20), (16, 23)):
        long = [len(a) > lengths[0] or len(b) > lengths[1] for a, b in zip(clip, t5, strict=True)]
        encoders = TextEncoders.load(paths(pipeline, "", "_3"), lengths, one_device())
        assert [encoders.cut([caption]) for caption in captions] == long
        assert encoders.cut(captions) == sum(long)
        counted.add(sum(long))
    assert counted == {0, 6, 4, 3}


def refused(message, *args, **kwargs):
    with pytest.raises(UserError, match=message):
        TextEncoders.load(*args, **kwargs)


def test_encoders_that_do_not_go_together_are_refused(pipeline):
    large, big_g, t5 = paths(pipeline, "", "_2", "_3")
    mesh = one_device()
    refused(r"no text encoder is given", [], 8, mesh)
    refused(r"run in float32 or bfloat16, not float16: T5 leaves its range", [t5], 8, mesh, jnp.float16)
    refused(r"2 text encoders need as many lengths, not 1", [large, t5], [8], mesh)
    refused(
        r"text_encoder takes texts of at least 2 and at most 20 tokens; length 21 does not do",
        [large, t5],
        [21, 8],
        mesh,
    )
    refused(r"text_encoder_3 takes texts of at least 1 tokens; length 0 does not do", [t5], 0, mesh)
    refused(r"of a text of 20 tokens CLIP takes 20, which leaves none for T5", [large, t5], 20, mesh)
    refused(r"length 21 does not do", [large], 21, mesh)
    refused(r"side by side: give all of them one length, not 20, 16", [large, big_g], [20, 16], mesh)
    refused(
        r"joined as flux are a T5, for the tokens, and a CLIP", [large, big_g], 8, mesh, spec=CaptionSpec(join="flux")
    )


def test_wrong_folders_are_refused(pipeline, tmp_path):
    mesh = one_device()
    refused(r"there is no file or folder .*nothing", [tmp_path / "nothing"], 8, mesh)
    refused(
        r"is a whole pipeline; give the folders of its text encoders: text_encoder, text_encoder_2,",
        [pipeline],
        8,
        mesh,
    )
    refused(r"config.json is missing: it says what the weights", [pipeline / "tokenizer"], 8, mesh)

    folder = write_t5(tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    refused(
        r"model_type is 'bert', architectures \['BertModel'\]; text encoders here are 't5', 'clip'", [folder], 8, mesh
    )
    found = t5_config()
    del found["model_type"]
    (folder / "config.json").write_text(json.dumps(found))
    assert TextEncoder(folder, mesh).kind == "t5"  # by its architecture
    (folder / "config.json").write_text(json.dumps(t5_config(vocab_size=100)))
    refused(r"shared.weight has shape \(480, 16\), but config.json says \(100, 16\)", [folder], 8, mesh)


def test_a_missing_or_other_tokenizer_is_refused(tmp_path):
    mesh = one_device()
    folder = write_t5(tmp_path / "text_encoder_2")
    (folder / "spiece.model").unlink()
    places = r"lies in .*text_encoder_2 or .*tokenizer_2; download it"
    refused(rf"no tokenizer \(spiece.model or tokenizer.json\) {places}", [folder], 8, mesh)
    write_clip_tokenizer(tmp_path / "tokenizer_2")  # of the other kind
    refused(rf"no tokenizer \(spiece.model or tokenizer.json\) {places}", [folder], 8, mesh)
    write_t5_tokenizer(tmp_path / "tokenizer_2")
    assert TextEncoder(folder, mesh).kind == "t5"

    folder = write_clip(tmp_path / "clip", vocab_size=300)
    refused(r"clip embeds 300 tokens, but its tokenizer has \d+: it is another model's", [folder], 8, mesh)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    refused(r"no tokenizer \(tokenizer.json or vocab.json\) lies in .*clip; download it", [folder], 8, mesh)
    write_clip_tokenizer(folder, END)
    (folder / "merges.txt").unlink()
    refused(r"neither tokenizer.json nor vocab.json with merges.txt", [folder], 8, mesh)


def test_one_of_several_variants_is_given_by_its_file(tmp_path):
    folder, mesh = write_clip(tmp_path), one_device()
    wanted = TextEncoder(folder, mesh).encode(CAPTIONS, 8)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "model.ema.safetensors").write_bytes(b"")
    refused(r"holds several sets of weights: model.ema.safetensors, model.fp16.safetensors", [folder], 8, mesh)
    out = TextEncoder(folder / "model.fp16.safetensors", mesh).encode(CAPTIONS, 8)
    np.testing.assert_array_equal(out.text_BTM, wanted.text_BTM)


def test_a_truncated_file_is_refused(tmp_path):
    folder = write_clip(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    refused(
        r"model.safetensors: truncated: \d+ of \d+ bytes of data are there, tensor \S+ is", [folder], 8, one_device()
    )
