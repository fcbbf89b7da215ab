"""Pictures found in tars to latents and embeddings, stored, trained on and sampled from; against diffusers and transformers."""

import io
import json
import re
import struct
import tarfile
import tempfile
import zlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from ec_dit import evaluate, prepare, sample
from ec_dit.data import dataset
from ec_dit.runs import references
from ec_dit.runs.workdir import Workdir
from ec_dit.system.captions import Captions
from tests import encoded_sets as sets
from tests.encoders.text_folders import t5_config, write_t5_tokenizer
from tests.encoders.tiny_vae import BASE
from tests.evaluators import networks

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("encoded")]

SCALE, SHIFT = 0.5, 0.25
KINDS = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"))
FILTERS = ("--keep=aesthetic>=5", "--max_pixels=10000", "--duplicate_bits=0", "--max_skipped_share=0.9")
CAPTIONS = "--captions=recaption=0.75,txt=0.25"
ASKED = {
    "00000/bomb": "huge: more than 10,000 pixels",
    "00000/vast": "huge: 120x90 is more than 10,000 pixels",
    "00000/plain": "not aesthetic>=5: 3.5",
    "00000/unrated": "no column aesthetic: it has key, status",
    "00000/tiny": "tiny: 12x40, shorter side under 16",
    "00000/twin": "duplicate: of 00000/000000000",
}
UNUSABLE = {
    "00000/damaged": "damaged image",
    "00000/noise": "not a picture",
    "00000/bare": "no caption: no 'recaption' or 'txt' (did you mean caption?); there is caption, key, status, aesthetic",
    "00000/blank": "empty caption",
    "00000/000000005#2": "repeated key: the files of an example must follow each other",
    "00000/../../evil": "path leaves the archive: '../../evil.txt'",
    "00000/link": "not a regular file: 'link.png'",
    "00000/failed": "download failed: HTTP Error 404",
    "00000/words": "damaged json",
    "00002.tar": "damaged archive: it ends early",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(diffusers' autoencoder, transformers' text encoder and tokenizer, the folder they are saved in)."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    sizes = {key: value for key, value in BASE.items() if key != "_class_name"}
    vae = AutoencoderKL(**sizes, scaling_factor=SCALE, shift_factor=SHIFT).eval()
    text_encoder = T5EncoderModel(T5Config(**t5_config(num_layers=2))).eval()
    with torch.no_grad():  # larger than the initial values, so that every part has a say
        for weight in (*vae.parameters(), *text_encoder.parameters()):
            weight.add_(0.1 * torch.randn_like(weight))
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    write_t5_tokenizer(folder / "text_encoder")
    return vae, text_encoder, T5Tokenizer.from_pretrained(folder / "text_encoder"), folder


def bomb(side):
    """A PNG of a few dozen bytes that says it has side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def sound(numbers, shown):
    """Members of examples 000000000, 000000001, ... of all shapes and kinds; every fourth names a side."""
    for number in numbers:
        caption, picture = shown[number]
        kind, suffix = KINDS[number // 3 % 3]
        caption += " on the left" if number % 4 == 3 else ""
        more = {"recaption": f"a drawing, it shows {caption}"} if number % 2 else {}
        data = sets.encoded(picture, sets.SHAPES[number % 3], kind)
        yield from sets.example(f"{number:09d}", data, caption, suffix, aesthetic=5 + number / 10, **more)


def broken(shown, absolute):
    """Members that give nothing to train on, each for another reason."""
    good = sets.encoded(shown[40][1], (64, 64))
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    failed = {"status": "failed_to_download", "error_message": "HTTP Error 404"}
    fine = {"aesthetic": 9}
    yield from sets.example("damaged", good[: len(good) // 2], "cut short", **fine)
    yield from sets.example("noise", b"no picture" * 9, "noise", **fine)
    yield from [member for member in sets.example("bare", good, "x", **fine) if not member[0].endswith("txt")]
    yield from sets.example("blank", good, " \n ", **fine)
    yield from sets.example("vast", sets.encoded(shown[41][1], (90, 120)), "vast", **fine)
    yield from sets.example("bomb", bomb(60_000), "bomb", **fine)
    yield from sets.example("tiny", sets.encoded(shown[41][1], (40, 12)), "tiny", **fine)
    yield from sets.example("twin", sets.encoded(shown[0][1], sets.SHAPES[0]), "the same again", **fine)
    yield from sets.example("000000005", good, "another with that name", **fine)
    yield from sets.example("plain", good, "not nice", aesthetic=3.5)
    yield from sets.example("unrated", good, "nobody looked")
    yield from sets.example("../../evil", good, "evil", **fine)
    yield from sets.example(absolute, good, "evil", **fine)
    yield link.name, link
    yield "link.txt", b"a link"
    yield "failed.json", json.dumps(failed).encode()
    yield "words.png", good
    yield "words.json", b"{no json"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """(folder of tars, a path that one of them would like to write to)."""
    folder = tmp_path_factory.mktemp("tars")
    shown = sets.pictures(42)
    evil = tmp_path_factory.mktemp("outside") / "evil"
    contents = {
        "00000": sets.tar([*sound(range(12), shown), *broken(shown, str(evil))]),
        "00001": sets.tar(sound(range(12, 24), shown)),
        "00002": sets.tar(sound(range(24, 32), shown)),
    }
    end = contents["00002"].index(b"000000031.") + tarfile.BLOCKSIZE + 100  # within the last picture
    contents["00002"] = contents["00002"][:end]
    for name, data in contents.items():
        (folder / f"{name}.tar").write_bytes(data)
    return folder, evil


@pytest.fixture(scope="module")
def made(published, tars, tmp_path_factory):
    """(the prepared set, files that were there before and files that are there after, beside it and where it was made)."""
    base = tmp_path_factory.mktemp("made")
    inner = base / "deep" / "deeper"
    inner.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inner)
        patch.setattr(tempfile, "tempdir", str(inner))
        command = sets.arguments(tars[0], inner / "set", published[3], *sets.BUCKETS, *FILTERS, CAPTIONS, "--flip")
        assert prepare.main(["prepare", *command]) == 0
    return inner / "set", base


def test_every_entry_is_kept_or_named_with_its_reason(made, tars):
    out, _ = made
    found = dataset.open(out)
    absolute = f"00000/{tars[1]}"
    expected = ASKED | UNUSABLE | {absolute: f"path leaves the archive: {str(tars[1]) + '.txt'!r}"}
    lines = list(found.skipped())
    reasons = {line["id"]: re.sub(r"(damaged (image|json)).*", r"\1", line["reason"]) for line in lines}
    assert len(lines) == len(expected) and reasons == expected
    assert {line["id"] for line in lines if line["asked"]} == set(ASKED)
    kept = [record.id for split in found.splits for record in found[split]]
    assert sorted(kept) == sorted(f"{number // 12:05d}/{number:09d}" for number in range(31))
    assert sum(found.report.kept.values()) == 31 and sum(found.report.skipped.values()) == len(expected)


def test_nothing_is_written_but_the_set(made, tars):
    out, base = made
    assert [path for path in base.rglob("*") if out not in path.parents] == [base / "deep", base / "deep/deeper", out]
    assert list(tars[1].parent.iterdir()) == []
    found = dataset.open(out)
    assert {path.name for path in out.iterdir()} == {*found.report.files, "report.json"}


def by_torch(vae, picture_BYXZ):
    """Mean and deviation of the latents of pictures in bytes, normalised as diffusers' pipelines do it."""
    import torch

    pixels = torch.from_numpy(picture_BYXZ.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    both = ((posterior.mean - SHIFT) * SCALE, posterior.std * SCALE)
    return np.stack([part.numpy().transpose(0, 2, 3, 1) for part in both], axis=1)


def by_transformers(published, caption, length=20):
    """The last states of a caption's tokens."""
    import torch

    _, encoder, tokenizer, _ = published
    found = tokenizer(caption, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(input_ids=found.input_ids, attention_mask=found.attention_mask).last_hidden_state
    return states[0].numpy(), found.attention_mask[0].numpy().astype(bool)


def originals():
    """{id: (pixels of the sound example, its captions)}."""
    found = {}
    members = list(sound(range(31), sets.pictures(42)))
    for number in range(31):
        (_, image), (_, facts), (_, text) = members[3 * number : 3 * number + 3]
        captions = tuple(filter(None, [json.loads(facts).get("recaption"), text.decode()]))
        with Image.open(io.BytesIO(image)) as picture:
            found[f"{number // 12:05d}/{number:09d}"] = np.asarray(picture.convert("RGB")), captions
    return found


def stored(folder):
    """{id: (latents, tokens, masks, scales, fields)}, from the bytes of the files alone."""
    found = {}
    for file, fields in sets.fields(folder):
        rows, columns = map(int, re.search(r"_(\d+)x(\d+)\.", file).groups())
        latents = np.frombuffer(fields["latent"], "<f2").reshape(-1, 2, rows, columns, 4)
        scales = np.frombuffer(fields["scale"], "<f4")
        tokens = np.frombuffer(fields["text"], np.int8 if len(scales) else ml_dtypes.bfloat16).reshape(-1, 16)
        count = len(json.loads(fields["captions"]))
        bits = np.unpackbits(np.frombuffer(fields["mask"], np.uint8).reshape(count, -1), axis=1)[:, :20]
        found[fields["id"].decode()] = latents, tokens.astype(np.float32), bits.astype(bool), scales, fields
    return found


def test_latents_and_embeddings_are_those_of_diffusers_and_transformers(made, published):
    found, given = stored(made[0]), originals()
    assert len(found) == 31
    mirrored = set()
    for key, (latents, tokens, masks, _, fields) in found.items():
        pixels, captions = given[key]
        both = np.stack([pixels, pixels[:, ::-1]])[: len(latents)]
        expected = by_torch(published[0], both)
        assert latents.shape == expected.shape == (len(both), 2, pixels.shape[0] // 8, pixels.shape[1] // 8, 4)
        np.testing.assert_allclose(latents.astype(np.float32), expected, rtol=2**-10, atol=5e-4)
        mirrored |= {key} if len(latents) == 2 else set()

        assert tuple(json.loads(fields["captions"])) == captions
        assert json.loads(fields["weights"]) == ([0.75, 0.25] if len(captions) == 2 else [])
        states = [by_transformers(published, caption) for caption in captions]
        np.testing.assert_array_equal(masks, [mask for _, mask in states])
        expected = np.concatenate([state[mask] for state, mask in states])
        np.testing.assert_allclose(tokens, expected, rtol=2**-8, atol=5e-4)
    for part in (0, 1):  # pictures have a say in it
        assert np.std([latents[0, part].mean((0, 1)) for latents, *_ in found.values()], axis=0).min() > 1e-3
    sided = {key for key in found if int(key[-2:]) % 4 == 3}
    assert not mirrored & sided and len(mirrored) > 10


def test_the_empty_text_and_the_moments(made, published):
    found = dataset.open(made[0])
    states, mask = by_transformers(published, "")
    np.testing.assert_array_equal(found.encoding.null_mask_T, mask)
    np.testing.assert_allclose(found.encoding.null_text_TM[mask], states[mask], rtol=1e-4, atol=1e-4)
    training = {record.id for record in found["train"]}
    first = [latents[0].astype(np.float64) for key, (latents, *_) in stored(made[0]).items() if key in training]
    mean, std = (np.concatenate([latent[part].reshape(-1, 4) for latent in first]) for part in (0, 1))
    np.testing.assert_allclose(found.encoding.mean_Z, mean.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.encoding.std_Z, np.sqrt(mean.var(0) + (std**2).mean(0)), rtol=1e-5)


def test_tfds_describes_the_files(made):
    found = dataset.open(made[0])
    sizes = {f"{split}_{shape}": n for split, of in found.report.shapes.items() for shape, n in of.items()}
    assert sets.tfds_sizes(made[0]) == sizes
    assert {name.partition("_")[2] for name in sizes} == {"8x8", "6x10", "10x6"}


def test_it_trains_resumes_validates_draws_and_samples(made, published, tmp_path, capsys, monkeypatch):
    out, _ = made
    run = tmp_path / "run"
    often = ("--config.log.validate_every=3", "--config.log.sample_every=3", "--config.log.validate_images=31")
    for steps in (2, 4):
        more = (f"--config.data.path={out}", f"--config.train.steps={steps}", *often)
        assert sets.train(tmp_path, run, *more) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "resuming at step 2" in told and told.count("no sample grids") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    validation = [line for line in lines if "validation_loss/train" in line]
    assert [line["step"] for line in validation] == [2, 3, 4] and "validation_loss/validation" in validation[0]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    with Image.open(run / "images" / "samples_0000003.png") as grid:
        assert np.asarray(grid).std() > 5

    words = ["--prompt=Black CIRCLE", "--num=2", "--shape=48x80", f"--out={tmp_path / 'out'}"]
    assert sample.main(["sample", f"--workdir={run}", *words]) == 0, capsys.readouterr().err
    with Image.open(tmp_path / "out" / "00000_0001.png") as picture:
        assert picture.size == (80, 48) and np.asarray(picture).std() > 1
    workdir = Workdir(str(run))
    system, _, step = workdir.load(workdir.config())
    assert step == 4
    states, mask = by_transformers(published, "Black CIRCLE")
    text = Captions(system)(["Black CIRCLE"])
    np.testing.assert_allclose(np.asarray(text.tokens)[0][mask], states[mask], rtol=1e-4, atol=1e-4)

    # Scores against its own data need no text encoder: the captions' embeddings are stored.
    networks.write_clip(tmp_path / "clip")
    monkeypatch.setattr(references, "Captions", None)
    words = ["--suite=cmmd", f"--clip={tmp_path / 'clip'}", "--reference=train", "--reference_most=3", "--steps=1"]
    assert evaluate.main(["evaluate", f"--workdir={run}", *words]) == 0, capsys.readouterr().err
    assert json.loads((run / "eval_cmmd.json").read_text())["n"] == 3


@pytest.mark.exhaustive
def test_embeddings_in_eight_bits(made, published, tars, tmp_path, capsys):
    exact = stored(made[0])
    command = (*sets.BUCKETS, *FILTERS, CAPTIONS, "--flip", "--text_type=int8")
    out = sets.prepared(tars[0], tmp_path / "set", published[3], *command)
    found = stored(out)
    assert found.keys() == exact.keys()
    for key, (latents, tokens, masks, scales, fields) in found.items():
        np.testing.assert_array_equal(latents, exact[key][0])
        np.testing.assert_array_equal(masks, exact[key][2])
        captions = json.loads(fields["captions"])
        expected = np.concatenate([state[mask] for state, mask in (by_transformers(published, c) for c in captions)])
        np.testing.assert_allclose(scales, np.abs(expected).max(1) / 127, rtol=1e-3)
        error = np.abs(tokens * scales[:, None] - expected)
        assert (error <= scales[:, None] / 2 + 1e-4).all()
        assert len(fields["text"]) == expected.size  # a byte each
    data = dataset.open(out)
    read = next(iter(data["train"]))
    np.testing.assert_array_equal(
        np.concatenate([part for part, _ in read.texts]), found[read.id][1] * found[read.id][3][:, None]
    )
    dense = ("--config.moe.routing=dense", "--config.moe.num_experts=0")  # compiles sooner
    assert sets.train(tmp_path, tmp_path / "run", f"--config.data.path={out}", "--config.train.steps=2", *dense) == 0
    assert "step 2/2  loss" in capsys.readouterr().out


def test_captions_are_taken_as_often_as_they_weigh(made):
    from ec_dit.data.rows import EncodedRows

    records = dataset.open(made[0])["train"]
    rows = EncodedRows(records, posterior="mean", flip=True)
    index = next(i for i, record in enumerate(records) if len(record.captions) == 2 and len(record.latents) == 2)
    record = records[index]
    rng = np.random.default_rng(0)
    drawn = [rows.row(rows.read(index), rng) for _ in range(400)]
    (first, mask), (_, other) = record.texts
    assert mask.sum() != other.sum()  # so that the masks tell which caption it was
    took = [row.text.mask_BT.sum() == mask.sum() for row in drawn]
    assert 0.68 < np.mean(took) < 0.82
    mirrored = [np.array_equal(row.image_YXZ, record.latents[1][0].astype(np.float32)) for row in drawn]
    assert 0.4 < np.mean(mirrored) < 0.6
    text = drawn[took.index(True)].text.tokens
    np.testing.assert_array_equal(text[mask], first)
    assert not text[~mask].astype(jnp.float32).any()
