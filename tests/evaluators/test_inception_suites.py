"""FID and KID end to end, on random weights in pytorch-fid's layout: its own command's figures, and how they move."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ec_dit import evaluate
from ec_dit.judges import moments
from tests import fid_network

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("inception")]

# pytorch-fid's main with the weights of a file; arguments: the file, and pytorch-fid's own.
COMMAND = """
import sys
from tests import fid_network, fid_tools
network, score = fid_network.random_network(), fid_tools.load("pytorch_fid.fid_score")
fid_tools.load("pytorch_fid.inception").fid_inception_v3 = lambda: network
from safetensors.torch import load_file
network.load_state_dict(load_file(sys.argv.pop(1)))
score.main()
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return fid_network.write(tmp_path_factory.mktemp("inception") / "fid.safetensors")


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Folders of pictures: two halves of the emoji, and the second one spoilt in several ways."""
    pytest.importorskip("emoji")
    from ec_dit.preparation.sources.drawn.emoji import EmojiOptions, EmojiSource

    source = EmojiSource(EmojiOptions(image_size=48))
    records = [
        record for shard in range(len(source.shards())) for record in source.records(shard) if hasattr(record, "image")
    ]
    rng = np.random.default_rng(0)
    faces = [record for record in records if "face" in record.caption]
    others = [record for record in records if "flag" in record.caption]
    drawn = [faces[i] for i in rng.permutation(len(faces))[:48]]
    pictures = [np.asarray(Image.open(io.BytesIO(record.image))) for record in drawn]
    wrong = [np.asarray(Image.open(io.BytesIO(others[i].image))) for i in rng.permutation(len(others))[:24]]
    half = pictures[24:]
    sets = {"a": pictures[:24], "b": half, "flags": wrong}
    sets["blur2"] = [np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2))) for picture in half]
    sets["noise120"] = [
        np.clip(picture + rng.normal(0, 120, picture.shape), 0, 255).astype(np.uint8) for picture in half
    ]
    place = tmp_path_factory.mktemp("emoji")
    for name, made in sets.items():
        (place / name).mkdir()
        for number, picture in enumerate(made):
            Image.fromarray(picture).save(place / f"{name}/{number:03d}.png")
    return place


def score(place, weights, images, reference, suite="fid:bootstrap=0,batch_size=3"):
    arguments = [f"--images={images}", f"--reference={reference}", f"--inception={weights}", f"--out={place}"]
    assert evaluate.main(["evaluate", *arguments, f"--suite={suite}"]) == 0
    return json.loads((place / f"eval_{suite.partition(':')[0]}.json").read_text())


def small(tmp_path, count=12):
    """Two folders of pictures of odd sizes."""
    rng = np.random.default_rng(0)
    for name, shift in (("a", 0), ("b", 50)):
        (tmp_path / name).mkdir()
        for number in range(count):
            coarse = np.clip(rng.integers(0, 200, (5, 6, 3)) + shift, 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC).save(
                tmp_path / f"{name}/{number:02d}.png"
            )
    return tmp_path / "a", tmp_path / "b"


def digest(folder):
    """Of the shapes and bytes of all pictures of a folder."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        pixels = np.asarray(Image.open(file))
        found.update(f"{pixels.shape}".encode() + pixels.tobytes())
    return found.hexdigest()


def test_fid_is_what_pytorch_fids_command_prints(weights, tmp_path):
    a, b = small(tmp_path)
    command = [sys.executable, "-c", COMMAND, str(weights), str(a), str(b), "--num-workers", "0"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    wanted = float(printed.rpartition("FID:")[2])
    found = score(tmp_path, weights, a, b, f"fid:bootstrap=3,batch_size=2,write={tmp_path / 'b.npz'}")
    assert wanted > 0.01
    assert found["score"] == pytest.approx(wanted, rel=1e-3)
    assert found["n"] == 12 and 0 < found["standard_error"] < wanted
    assert len(found["choices"]["inception"]["sha256"]) == 64 and found["choices"]["resize"] == "pytorch_fid"
    assert [found["choices"]["pixels_sha256"], found["choices"]["reference"]["pixels_sha256"]] == [digest(a), digest(b)]
    # The statistics that were written serve as the reference in its place.
    assert moments.read(tmp_path / "b.npz", 2048).count == 12
    again = score(tmp_path, weights, a, tmp_path / "b.npz", "fid:bootstrap=0,batch_size=2")
    assert again["score"] == pytest.approx(found["score"], rel=1e-9)
    assert again["choices"]["reference"]["statistics"]["path"] == str(tmp_path / "b.npz")


@pytest.mark.exhaustive
@pytest.mark.extra("emoji")
def test_fid_is_small_between_halves_and_rises_with_blur_noise_and_wrong_classes(weights, emoji, tmp_path):
    fids = {}
    statistics = tmp_path / "a.npz"
    fids["b"] = score(tmp_path, weights, emoji / "b", emoji / "a", f"fid:bootstrap=0,batch_size=3,write={statistics}")
    for name in ("blur2", "noise120", "flags"):
        fids[name] = score(tmp_path, weights, emoji / name, statistics)
    values = {name: found["score"] for name, found in fids.items()}
    assert values["b"] < values["blur2"]
    assert values["b"] < values["noise120"]
    assert values["flags"] > 2 * values["b"]
    kid = score(tmp_path, weights, emoji / "flags", emoji / "a", "kid:subset_size=20,batch_size=3")
    assert kid["score"] > 2 * kid["standard_error"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "FID's Inception, as safetensors in pytorch-fid's layout, is needed: --inception=PATH"),
        ({"inception": "none.safetensors"}, "there is no file or folder none.safetensors"),
        ({"reference": "nowhere"}, "there is no folder"),
        ({"reference": "nowhere.npz"}, "there is no statistics file"),
        ({"reference": ""}, "give --reference=PATH"),
        ({"images": "empty"}, "holds no pictures"),
        ({"images": "one"}, "a covariance needs two pictures at least, and here are 1"),
        ({"images": "mixed"}, "holds pictures of different sizes: 0.png has 8x8 pixels, 1.png 9x8"),
        ({"images": "broken"}, "1.png does not open: not a picture"),
        ({"resize": "tf"}, "option resize=tf: choose one of pytorch_fid, clean"),
    ],
    ids=lambda value: next(iter(value), "nothing") + str(*value.values()) if isinstance(value, dict) else "",
)
def test_wrong_input_is_one_message(weights, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    for name, sizes in {"good": (8, 8), "empty": (), "one": (8,), "mixed": (8, 9), "broken": (8, 8)}.items():
        (tmp_path / name).mkdir()
        for number, side in enumerate(sizes):
            Image.new("RGB", (side, 8), "red").save(tmp_path / f"{name}/{number}.png")
    (tmp_path / "broken/1.png").write_bytes(b"no picture")
    given = {"images": "good", "reference": "good", "inception": weights} | change
    if not change:
        del given["inception"]
    words = [f"--{name}={value}" for name, value in given.items() if value or name == "images"]
    assert evaluate.main(["evaluate", *words, "--suite=fid:batch_size=1,bootstrap=0", "--out=out"]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
