"""prepare with encoders: wrong flags, captions that are cut, and what was interrupted."""

import json
import re
import shutil

import jax
import pytest
import sentencepiece

from ec_dit import prepare
from ec_dit.core.mesh import make_mesh
from ec_dit.data import dataset
from ec_dit.data.captions import CaptionSpec
from ec_dit.encoders.frozen import FrozenEncoders
from tests import encoded_sets as sets
from tests.encoded.refusals import refusal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("encoded_runs")]  # they share sets that take their time

SQUARE = ("--resolution=16",)


def damaged(place):
    """Folders of encoders that are no good."""
    shutil.copytree(place / "encoders", place / "bad", dirs_exist_ok=True)
    weights = place / "bad" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes((place / "encoders" / "vae" / weights.name).read_bytes()[:-100])
    (place / "bad" / "text_encoder" / "spiece.model").unlink(missing_ok=True)


FLAGS = {
    "no text encoder": (["--vae=VAE"], "--vae and --text_encoder go together"),
    "no autoencoder": (["--text_encoder=T5"], "--vae and --text_encoder go together"),
    "empty folders": (["--vae=", "--text_encoder="], "--vae=: it is empty"),
    "nothing there": (["--vae=PLACE/nowhere", "--text_encoder=T5"], "there is no file or folder PLACE/nowhere"),
    "exchanged": (["--vae=T5", "--text_encoder=VAE"], "encoders/text_encoder"),
    "cut weights": (
        ["--vae=PLACE/bad/vae", "--text_encoder=T5"],
        "bad/vae/diffusion_pytorch_model.safetensors: truncated",
    ),
    "no tokenizer": (
        ["--vae=VAE", "--text_encoder=PLACE/bad/text_encoder"],
        "no tokenizer (spiece.model or tokenizer.json) lies in",
    ),
    "odd resolution": (
        ["BOTH", "--resolution=17"],
        "pictures of 17 x 17 pixels do not divide into the autoencoder's 2 x 2",
    ),
    "no resolution": (["BOTH", "--resolution=0"], "resolution is 0; it must be at least 1"),
    "odd step": (["BOTH", "--resolution=15", "--buckets", "--bucket_step=5"], "change --resolution or --bucket_step"),
    "another step": (
        ["BOTH", "--resolution=16", "--buckets", "--bucket_step=5"],
        "must be a multiple of 5, such as 15",
    ),
    "no step": (["BOTH", "--resolution=64", "--buckets", "--bucket_step=0"], "step is 0; it must be at least 1"),
    "flat buckets": (["BOTH", "--resolution=64", "--buckets", "--bucket_aspect=0.5"], "max_aspect is 0.5"),
    "step alone": (["BOTH", "--bucket_step=16"], "--bucket_step and --bucket_aspect need --buckets"),
    "aspect alone": (["BOTH", "--bucket_aspect=2"], "--bucket_step and --bucket_aspect need --buckets"),
    "buckets of pictures": (["--buckets"], "--buckets is of encoded data sets"),
    "flip of pictures": (["--flip"], "--flip is of encoded data sets"),
    "no text": (["BOTH", "--text_length=0"], "--text_length must be at least 1"),
    "no batch": (["BOTH", "--batch_size=0"], "--batch_size and --text_length must be at least 1"),
    "text type": (["BOTH", "--text_type=float8"], "--text_type=float8: value should be one of <bfloat16|int8>"),
    "tokenizer": (["BOTH", "--tokenizer=x"], "--tokenizer is of pictures stored as they are"),
    "pieces": (["BOTH", "--vocab_size=60"], "--vocab_size is of pictures stored as they are"),
    "no shards": (
        ["BOTH", "--resolution=16", "--num_shards=0"],
        "num_shards is 0; source webdataset comes in 3 pieces",
    ),
    "many shards": (["BOTH", "--resolution=16", "--num_shards=4"], "comes in 3 pieces: give 1 to 3"),
    "odd mesh": (["BOTH", "--resolution=16", "--mesh=3,1,1,1"], "covers 3 devices, but 8 are here"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags_stop_with_one_message(case, place, tmp_path, capsys):
    damaged(place)
    flags, message = FLAGS[case]
    vae, text_encoder = f"{place}/encoders/vae", f"{place}/encoders/text_encoder"
    given = []
    for flag in flags:
        given += ["--vae=VAE", "--text_encoder=T5"] if flag == "BOTH" else [flag]
    given = [flag.replace("VAE", vae).replace("T5", text_encoder).replace("PLACE", str(place)) for flag in given]
    command = ["prepare", "--source=webdataset", f"--path={place / 'tars'}", f"--out={tmp_path / 'set'}", *given]
    assert message.replace("PLACE", str(place)) in refusal(capsys, prepare.main(command), "prepare")
    assert list(tmp_path.iterdir()) == []


def test_captions_that_real_encoders_cut_are_counted(place, tmp_path):
    """In the report and in the table, as sentencepiece itself counts; in lower case where that is encoded."""
    captions = [
        "a red circle",
        "A RED CIRCLE",
        " and two blue cats",
        "a yellow square and a green cat  ",
        "cat",
        "A CAT",
    ]
    data = sets.encoded(sets.pictures(1)[0][1], (16, 16))
    members = [m for n, text in enumerate(captions) for m in sets.example(f"{n}", data, text, other=f"{text} and more")]
    (tmp_path / "0.tar").write_bytes(sets.tar(members))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(place / "encoders/text_encoder/spiece.model"))
    captions += [f"{text} and more" for text in captions]

    def cut(texts):
        return sum(len(processor.encode(text)) + 1 > 6 for text in texts)  # with the token that ends it

    flags = ("--captions=txt,other", "--text_length=6", "--validation_share=0")
    report = dataset.open(sets.prepared(tmp_path, tmp_path / "set", place / "encoders", *SQUARE, *flags)).report
    assert report.cut == {"captions": 12, "cut": cut(captions), "length": 6}
    assert re.search(rf"captions cut at 6 tokens +{cut(captions)}\n", report.table())
    folders = (str(place / "encoders/vae"), [str(place / "encoders/text_encoder")])
    encoders = FrozenEncoders(*folders, 6, make_mesh((1, 1, 1, 1), jax.devices()[:1]), spec=CaptionSpec(lower=True))
    lower = [text.strip().lower() for text in captions]
    assert encoders.cut(captions) == cut(lower) and 0 < cut(lower) < cut(captions) < 12


def test_captions_read_as_a_model_does(place, trained, tmp_path, capsys):
    """Of a workdir; beside it no flag says what it says."""
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    told = json.loads((trained / "config.json").read_text())
    told["text"] |= {"lower": True, "padding": "read", "template": "say {caption}!", "length": 9}
    path.write_text(json.dumps(told))
    like = f"--text_like={path.parent}"

    def run(out, *more):
        words = sets.arguments(place / "tars", tmp_path / out, place / "encoders", *SQUARE, *more)
        return prepare.main(["prepare", *(word for word in words if word != "--text_length=20")])

    assert run("set", like) == 0
    facts, wanted = dataset.open(tmp_path / "set").encoding.facts["text"], told["text"]
    assert {key: facts[key] for key in ("lower", "padding", "template", "length", "join", "layer")} == {
        key: wanted[key] for key in ("lower", "padding", "template", "length", "join", "layer")
    }
    for more, message in (
        ([like, "--lower"], "--lower is what --text_like takes from the workdir"),
        ([like, "--text_length=7"], "--text_length is what --text_like takes"),
        ([f"--text_like={tmp_path}"], "there is no workdir"),
        (["--text_template=say"], "--text_template=say: .*give a text with {caption} in it, once"),
        (["--text_padding=none"], "--text_padding=none"),
    ):
        assert run("other", *more) == 2
        assert re.search(message, capsys.readouterr().err)


def test_what_was_interrupted_goes_on_with_the_same_settings_only(place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"

    def run(encoders, *more):
        return prepare.main(["prepare", *sets.arguments(place / "tars", out, place / encoders, *more)])

    calls = []
    encode = FrozenEncoders.images

    def interrupted(self, image_BYXZ):
        calls.append(1)
        if len(calls) == 4:  # of two batches in each of three tars
            raise KeyboardInterrupt
        return encode(self, image_BYXZ)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoders, "images", interrupted)
        assert run("encoders", *SQUARE) == 130
    left = sets.contents(tmp_path)
    assert not out.exists() and any(name.endswith("units/000000.json") for name in left)
    capsys.readouterr()
    for encoders, flags, message in (
        ("encoders", ["--resolution=32"], "encoding.pictures.resolution: 16 -> 32"),
        ("encoders", [*SQUARE, "--text_type=int8"], 'encoding.text.type: "bfloat16" -> "int8"'),
        ("encoders", [*SQUARE, "--min_size=8"], "filters.min_size: 16 -> 8"),
        ("encoders", [*SQUARE, "--flip"], "encoding.pictures.flip: false -> true"),
        ("others", SQUARE, "encoding.autoencoder.sha256: "),
    ):
        errors = refusal(capsys, run(encoders, *flags), "prepare")
        assert "made with other settings" in errors and message in errors
        assert sets.contents(tmp_path) == left
    assert run("encoders", *SQUARE) == 0
    assert sets.contents(out) == sets.contents(place / "square")
    assert list(tmp_path.iterdir()) == [out]
