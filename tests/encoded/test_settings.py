"""Every mistake that a run on latents and embeddings can make with its config, its data or its encoders."""

import json
import shutil

import pytest

from ec_dit import prepare, sample
from tests import encoded_sets as sets
from tests.encoded.refusals import refusal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("encoded_runs")]  # they share sets that take their time

SQUARE = ("--resolution=16",)
SETTINGS = {
    "another autoencoder": (["data.autoencoder=PLACE/others/vae"], ["made with the autoencoder PLACE/encoders/vae ("]),
    "another text encoder": (
        ["text.path=PLACE/others/text_encoder"],
        ["made with the text encoder PLACE/encoders/text_encoder (", "not PLACE/others/text_encoder ("],
    ),
    "two text encoders": (
        ["text.path=PLACE/encoders/text_encoder,PLACE/others/text_encoder"],
        ["made with the text encoder PLACE/encoders/text_encoder ("],
    ),
    "no autoencoder there": (["data.autoencoder=PLACE/nowhere"], ["there is no file or folder PLACE/nowhere"]),
    "another resolution": (["data.size=16"], ["pictures of 16 pixels: data.size 8 in the data, 16 in the config"]),
    "channels": (["data.channels=16"], ["latents: data.channels 4 in the data, 16 in the config"]),
    "text length": (["text.length=77"], ["tokens of a caption: text.length 20 in the data, 77 in the config"]),
    "text width": (["text.width=32"], ["embeddings: text.width 16 in the data, 32 in the config"]),
    "several at once": (
        ["data.size=16", "text.length=77", "data.autoencoder=PLACE/others/vae"],
        ["data.size 8", "text.length 20", "made with the autoencoder"],
    ),
    "pictures where latents are wanted": (
        ["data.path=PLACE/pictures"],
        ["pictures holds pictures, but", "space=latents"],
    ),
    "latents where pictures are wanted": (
        ["data.space=pixels", "data.channels=3", "text.encoder=tower"],
        ["square holds latents and embeddings, but", "space=pixels"],
    ),
    "a tower for embeddings": (
        ["text.encoder=tower"],
        ["text.encoder=tower, but", "latents and embeddings: cached is needed"],
    ),
    "nothing there": (["data.path=PLACE/nowhere"], ["there is no data set at PLACE/nowhere"]),
    "groups that the shapes do not fill": (
        ["data.path=PLACE/buckets", "moe.group_size=16"],
        ["batches of ", " latent pixels: routing: groups of 16 tokens do not divide the 120 tokens"],
    ),
    "a mask that keeps no whole number": (
        ["data.path=PLACE/buckets", "flow.mask_ratio=0.5"],
        ["mask_ratio=0.5 keeps 7.5 of the 15 tokens", "an image of "],
    ),
}


@pytest.fixture(scope="module")
def pictures(place):
    arguments = ["--source=webdataset", f"--path={place / 'tars'}", f"--out={place / 'pictures'}", "--vocab_size=60"]
    assert prepare.main(["prepare", *arguments]) == 0


@pytest.mark.parametrize("case", SETTINGS)
def test_a_set_that_the_config_does_not_fit_is_refused(case, place, pictures, tmp_path, capsys):
    changes, messages = SETTINGS[case]
    capsys.readouterr()
    changes = [
        f"--config.{change.replace('PLACE', str(place))}" for change in (f"data.path={place / 'square'}", *changes)
    ]
    errors = refusal(capsys, sets.train(place, tmp_path / "run", *changes), "main")
    for message in messages:
        assert message.replace("PLACE", str(place)) in errors
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_same_set_only(place, trained, others, tmp_path, capsys):
    def resume(folder, *more):
        return sets.train(place, trained, f"--config.data.path={folder}", "--config.train.steps=3", *more)

    before = sets.contents(trained)
    capsys.readouterr()
    errors = refusal(capsys, resume(others), "main")
    for part in ("autoencoder.sha256: ", "text.sha256: "):
        assert part in errors

    (tmp_path / "tars").mkdir()
    for path in (place / "tars").iterdir():  # one letter of one caption
        data = path.read_bytes()
        changed = data.replace(b"hourglass", b"Hourglass").replace(b" patches", b" Patches")
        (tmp_path / "tars" / path.name).write_bytes(changed)
    edited = sets.prepared(tmp_path / "tars", tmp_path / "edited", place / "encoders", *SQUARE)
    capsys.readouterr()
    errors = refusal(capsys, resume(edited), "main")
    assert f"records of the data set: {place / 'square'} -> {edited} (not the same content)" in errors
    assert "sha256" not in errors

    moved = tmp_path / "moved"
    shutil.copytree(place / "square", moved)
    file = next(moved.glob("*train_8x8.array_record-00001*"))
    good = file.read_bytes()
    middle = len(good) // 2
    file.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    errors = refusal(capsys, resume(moved), "main")
    assert f"{moved} is damaged: the content of {file.name} is not what was prepared" in errors
    assert sets.contents(trained) == before

    file.write_bytes(good)
    assert resume(moved, f"--config.data.autoencoder={place / 'encoders' / 'vae'}") == 0
    assert "resuming at step 2" in capsys.readouterr().out


def test_parameters_of_other_encoders_are_no_start(place, trained, others, tmp_path, capsys):
    start = f"--config.train.init_from={trained}"
    capsys.readouterr()
    code = sets.train(place, tmp_path / "other", f"--config.data.path={others}", start, "--config.train.steps=1")
    errors = refusal(capsys, code, "main")
    assert f"init_from={trained}: its parameters were trained on data encoded otherwise" in errors
    assert "autoencoder.sha256: " in errors and "text.sha256: " in errors and "scale" not in errors
    same = sets.prepared(place / "tars", tmp_path / "same", place / "encoders", *SQUARE, "--min_size=8")
    code = sets.train(place, tmp_path / "same_run", f"--config.data.path={same}", start, "--config.train.steps=1")
    assert code == 0 and f"starting with the parameters of {trained}" in capsys.readouterr().out


def test_sampling_with_other_encoders_is_refused(place, trained, tmp_path, capsys):
    words = ["sample", f"--workdir={trained}", "--prompt=a cat", "--num=1", f"--out={tmp_path / 'out'}"]
    capsys.readouterr()
    for flag, message in (
        (f"--autoencoder={place / 'others' / 'vae'}", f"made with the autoencoder {place / 'encoders' / 'vae'} ("),
        (f"--text_encoder={place / 'others' / 'text_encoder'}", "made with the text encoder"),
        (f"--autoencoder={place / 'nowhere'}", "there is no file or folder"),
        (f"--text_encoder={place / 'encoders' / 'vae'}", "text encoders here are"),
    ):
        assert message in refusal(capsys, sample.main([*words, flag]), "sample")
    assert not (tmp_path / "out").exists()
    shutil.copytree(place / "encoders", tmp_path / "moved")
    moved = [f"--autoencoder={tmp_path / 'moved' / 'vae'}", f"--text_encoder={tmp_path / 'moved' / 'text_encoder'}"]
    for file, message in (
        ("vae/diffusion_pytorch_model.safetensors", "made with the autoencoder"),
        ("text_encoder/model.safetensors", "made with the text encoder"),
        ("text_encoder/spiece.model", "made with the text encoder"),
    ):
        data = (tmp_path / "moved" / file).read_bytes()
        (tmp_path / "moved" / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # one bit, since the preparation
        assert message in refusal(capsys, sample.main([*words, *moved]), "sample")
        (tmp_path / "moved" / file).write_bytes(data)
    (tmp_path / "prompts.txt").write_text("a cat\n\n" + "a cat " * 40 + "\n")
    words = [word for word in words if "--prompt=" not in word] + [f"--prompts_file={tmp_path / 'prompts.txt'}"]
    assert sample.main([*words, *moved]) == 0
    assert "warning: cut, as the model reads 20 tokens at most: 1 prompts, 2\n" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert facts["cut"] == [2] and facts["prompts"][2].startswith("a cat a cat")
