"""Suites of a CLIP: their cosines are those of transformers' own model, processor and tokenizer."""

import json

import numpy as np
import pytest
from PIL import Image

from ec_dit import evaluate
from ec_dit.core.mesh import make_mesh
from ec_dit.encoders.clip_pair import ClipPair
from tests.evaluators import networks

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance")]

TEXTS = ["a red circle", "two blue squares", "a green star above a red circle", "a circle"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a CLIP, pictures of odd sizes, and their prompts."""
    place = tmp_path_factory.mktemp("clip")
    networks.write_clip(place / "clip")
    rng = np.random.default_rng(0)
    (place / "pictures").mkdir()
    for number in range(len(TEXTS)):
        for index in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
            coarse.resize((40, 30), Image.Resampling.BICUBIC).save(place / f"pictures/0000{number}_000{index}.png")
    (place / "prompts.txt").write_text("\n".join(TEXTS))
    return place


@pytest.fixture(scope="module")
def cosines(place):
    """(prompts, 2) by transformers."""
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(place / "clip").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(place / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place / "clip")
    found = np.empty((len(TEXTS), 2))
    with torch.no_grad():
        for number, text in enumerate(TEXTS):
            for index in range(2):
                image = Image.open(place / f"pictures/0000{number}_000{index}.png")
                pixels = processor(image, return_tensors="pt")["pixel_values"]
                ids = tokenizer([text], return_tensors="pt")
                out = model(pixel_values=pixels, **ids)
                found[number, index] = float(out.image_embeds[0] @ out.text_embeds[0])
    return found


def scores(place, suite, *more):
    arguments = [
        f"--images={place / 'pictures'}",
        f"--prompts={place / 'prompts.txt'}",
        "--num=2",
        f"--out={place / 'out'}",
    ]
    assert evaluate.main(["evaluate", *arguments, f"--clip={place / 'clip'}", f"--suite={suite}", *more]) == 0
    name = suite.partition(":")[0]
    return json.loads((place / f"out/eval_{name}.json").read_text())


def test_clip_score_is_the_mean_cosine(place, cosines):
    assert cosines.std() > 0.02
    found = scores(place, "clip_score")
    assert found["score"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert found["parts"]["times_100"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), abs=1e-3)
    assert found["n"] == 8 and found["choices"]["pictures"]["num"] == 2
    rows = [json.loads(line) for line in (place / "out/eval_clip_score.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["value"] for row in rows], cosines.ravel(), atol=1e-5)
    assert [row["prompt"] for row in rows[::2]] == TEXTS
    means = cosines.mean(1)
    assert found["standard_error"] == pytest.approx(means.std() / 2, rel=0.15)
    assert (place / "out/eval_clip_score.png").exists()


def test_preference_scores_are_scaled_cosines(place, cosines):
    import torch
    import transformers

    scale = float(transformers.CLIPModel.from_pretrained(place / "clip").logit_scale.detach().exp())
    assert torch.isfinite(torch.tensor(scale)) and scale > 5
    assert scores(place, "pick_score")["score"] == pytest.approx(scale * cosines.mean(), rel=1e-4)
    assert scores(place, "hps")["score"] == pytest.approx(100 * cosines.mean(), rel=1e-4)


def test_swapped_captions_have_the_cosines_of_the_wrong_pictures(place, cosines):
    import torch
    import transformers

    swapped = place / "swapped.txt"
    swapped.write_text("\n".join(TEXTS[::-1]))
    found = scores(place, "clip_score", f"--prompts={swapped}")["score"]
    assert abs(found - cosines.mean()) > 1e-3
    model = transformers.CLIPModel.from_pretrained(place / "clip").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(place / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place / "clip")
    files = sorted((place / "pictures").iterdir())
    wrong = [TEXTS[3 - number // 2] for number in range(8)]
    with torch.no_grad():
        pixels = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
        out = model(pixel_values=pixels, **tokenizer(wrong, return_tensors="pt", padding=True))
    assert found == pytest.approx(float((out.image_embeds * out.text_embeds).sum(1).mean()), abs=1e-5)


def test_texts_are_the_same_in_any_company(place):
    pair = ClipPair(place / "clip", make_mesh((-1, 1, 1, 1)), batch=2)
    texts_BD = pair.texts(TEXTS)
    assert texts_BD.shape == (4, 10)
    np.testing.assert_allclose(pair.texts(TEXTS[::-1]), texts_BD[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("suite", "more", "message"),
    [
        ("clip_score", ["--num=3"], "lacks 4 of 12 pictures of these prompts, first 00000_0002.png"),
        ("clip_score", ["--num=1"], "holds 00000_0001.png and 3 more, which is none of the 4 files of these prompts"),
        ("clip_score:clip=nowhere", [], "there is no file or folder nowhere"),
        ("clip_score", ["--inception=x"], "none of clip_score has an option inception"),
    ],
)
def test_mistakes_are_one_message(place, capsys, suite, more, message):
    arguments = [
        f"--images={place / 'pictures'}",
        f"--prompts={place / 'prompts.txt'}",
        "--num=2",
        f"--out={place / 'out'}",
    ]
    assert evaluate.main(["evaluate", *arguments, f"--clip={place / 'clip'}", f"--suite={suite}", *more]) == 2
    assert message in capsys.readouterr().err
