"""Training on latents and embeddings: what a batch of any shape holds, and every mistake that a run on them can make."""

import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from flax import nnx

from ec_dit import config as config_lib
from ec_dit import prepare, sample
from ec_dit.config import overrides
from ec_dit.core.mesh import make_mesh
from ec_dit.data import dataset
from ec_dit.data.loader import Loader, Share
from ec_dit.encoders.frozen import FrozenEncoders
from ec_dit.models import dit
from ec_dit.nn.routing import RoutingSpec
from ec_dit.runs import feed
from ec_dit.system import step as training_step
from ec_dit.system.model import make_system
from tests import encoded_sets as sets

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("encoded_runs")]  # they share sets that take their time

SIDES = ((32, 32), (24, 40), (40, 24))  # in pixels; a quarter of that in the latents
BUCKETS = ("--resolution=16", "--buckets", "--bucket_step=4")
SQUARE = ("--resolution=16",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tars of mixed shapes, two pairs of encoders, and the sets `buckets` and `square`."""
    folder = tmp_path_factory.mktemp("encoded_runs")
    sets.write_tars(folder / "tars", SIDES, 3, 16)
    sets.write_encoders(folder / "encoders", **sets.HALF)
    sets.write_encoders(folder / "others", seed=1, **sets.HALF)
    sets.prepared(folder / "tars", folder / "buckets", folder / "encoders", *BUCKETS)
    sets.prepared(folder / "tars", folder / "square", folder / "encoders", *SQUARE)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """A run of two steps on `square`."""
    assert sets.train(place, place / "run", f"--config.data.path={place / 'square'}", "--config.train.steps=2") == 0
    return place / "run"


@pytest.fixture(scope="module")
def others(place):
    """`square`, made with the other encoders."""
    return sets.prepared(place / "tars", place / "set_of_others", place / "others", *SQUARE)


def make_config(place, **changes):
    (place / "encoded.py").write_text(sets.SETTINGS)
    config = overrides.load(place / "encoded.py")
    config.data.update(path=str(place / "buckets"), **changes)
    return config_lib.typed(config)


def records(folder, split):
    """{id: (mean, deviation, tokens filled up, mask)}, read and decoded without the package under test."""
    found = {}
    for file, fields in sets.fields(folder):
        if f"-{split}_" in file:
            rows, columns = map(int, re.search(r"_(\d+)x(\d+)\.", file).groups())
            mean, std = np.frombuffer(fields["latent"], "<f2").reshape(2, rows, columns, 4).astype(np.float32)
            mask = np.unpackbits(np.frombuffer(fields["mask"], np.uint8))[:20].astype(bool)
            text = np.zeros((20, 16), np.float32)
            text[mask] = np.frombuffer(fields["text"], ml_dtypes.bfloat16).reshape(-1, 16)
            found[fields["id"].decode()] = mean, std, text, mask
    return found


def moments(found):
    """Mean and deviation of each channel of latents drawn from what the autoencoder gives."""
    means, stds = (np.concatenate([each[part].reshape(-1, 4) for each in found.values()]) for part in (0, 1))
    return means.mean(0), np.sqrt(means.var(0) + (stds**2).mean(0))


def positions(rows, columns, width, base, *_):
    """Sines and cosines of the column, then of the row, which count as on a base x base grid of the same area."""
    table = np.zeros((rows * columns, width), np.float32)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                rate = 10000 ** (-i / quarter) * base / (rows * columns) ** 0.5
                place = table[row * columns + column]
                place[i], place[quarter + i] = np.sin(column * rate), np.cos(column * rate)
                place[2 * quarter + i], place[3 * quarter + i] = np.sin(row * rate), np.cos(row * rate)
    return table


def losses_by_hand(system, params, batch_of_records):
    """Squared error of the velocity of each picture alone, at the time and with the noise of validation."""
    model, patch = nnx.merge(system.graphdef, params), 2
    latent = batch_of_records[0][1]
    (rows, columns, channels), found = latent.shape, []
    routing = RoutingSpec("expert_choice", 2.0, rows * columns // patch**2)
    forward = jax.jit(lambda *inputs: model.dit(*inputs, routing=routing)[0])
    for index, latent, text, mask in batch_of_records:
        time = np.float32((index * 0.6180339887498949 + 0.5) % 1.0)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), index), latent.shape))
        noisy = (1 - time) * latent + time * noise
        out = np.asarray(forward(noisy[None], time[None], text[None], mask[None]))
        grid = out.reshape(rows // patch, columns // patch, patch, patch, channels)
        velocity = grid.transpose(0, 2, 1, 3, 4).reshape(latent.shape)
        found.append(np.mean((velocity - (noise - latent)) ** 2))
    return found


def random_params(system):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(system.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("normalize", ["channel", "none"])
def test_the_loss_of_batches_of_every_shape_is_that_of_their_records(place, monkeypatch, normalize):
    config = make_config(place, normalize=normalize, posterior="mean")
    data = dataset.open(place / "buckets")
    system = make_system(config, None, jax.devices()[:1], encoding=data.encoding)
    params = random_params(system)
    stored = records(place / "buckets", "train")
    mean, std = moments(stored) if normalize == "channel" else (0, 1)
    seen = {}
    for batch, _ in zip(feed.make_loader(system, data).batches(), range(12), strict=False):
        seen.setdefault(batch.image_BYXZ.shape[1:3], batch)
    assert set(seen) == {(8, 8), (6, 10), (10, 6)}
    loss_fn = training_step.make_validation(system)
    for shape, batch in seen.items():
        chosen = []
        for index in batch.record_B:
            latent, _, text, mask = stored[data["train"][int(index)].id]
            chosen.append((int(index), np.float32((latent - mean) / std), text, mask))
        np.testing.assert_allclose(
            batch.image_BYXZ, np.stack([latent for _, latent, *_ in chosen]), rtol=1e-3, atol=1e-4
        )
        with jax.set_mesh(system.mesh):
            total, count = loss_fn(params, training_step.place(system, batch._replace(position_B=batch.record_B)))
            with monkeypatch.context() as patch:
                patch.setattr(dit, "sincos_2d", positions)
                expected = losses_by_hand(system, params, chosen)
                patch.setattr(dit, "sincos_2d", lambda rows, columns, *more: positions(columns, rows, *more))
                turned = losses_by_hand(system, params, chosen)
        assert count == 8
        np.testing.assert_allclose(total, sum(expected), rtol=1e-4)
        assert (abs(sum(turned) - sum(expected)) > 1e-3) == (shape != (8, 8))


def test_batches_on_eight_devices_are_those_of_one(place):
    config = make_config(place)
    data = dataset.open(place / "buckets")
    one = make_system(config, None, jax.devices()[:1], encoding=data.encoding)
    eight = make_system(config, None, encoding=data.encoding)
    assert eight.share == Share(tuple(range(8)), 8)
    loaders = [feed.make_loader(system, data) for system in (one, eight)]
    rows = feed.make_rows(one, data, "train", augment=True)
    halves = [Loader(rows, batch_size=8, seed=0, share=Share(blocks, 8)) for blocks in ((0, 1, 2, 3), (4, 5, 6, 7))]
    shapes = set()
    for a, b, *parts in itertools.islice(zip(*(loader.batches(3) for loader in (*loaders, *halves)), strict=True), 12):
        placed = training_step.place(eight, b)
        a, *parts = (each._replace(record_B=None) for each in (a, *parts))
        for array in jax.tree.leaves(placed):
            assert len(array.sharding.device_set) == 8 and array.sharding.shard_shape(array.shape)[0] == 1
        jax.tree.map(np.testing.assert_array_equal, a, placed)
        jax.tree.map(lambda whole, *each: np.testing.assert_array_equal(whole, np.concatenate(each)), a, *parts)
        shapes.add(a.image_BYXZ.shape)
    assert shapes == {(8, 8, 8, 4), (8, 6, 10, 4), (8, 10, 6, 4)}


def test_latents_are_drawn_from_what_the_autoencoder_gives(place):
    data = dataset.open(place / "buckets")
    stored = records(place / "buckets", "train")
    system = make_system(make_config(place), None, jax.devices()[:1], encoding=data.encoding)
    mean, std = moments(stored)
    noise, latents = [], []
    for batch in itertools.islice(feed.make_loader(system, data).batches(), 30):
        for index, latent in zip(batch.record_B, batch.image_BYXZ, strict=True):
            own_mean, own_std, *_ = stored[data["train"][int(index)].id]
            noise.append(((latent * std + mean - own_mean) / own_std).ravel())
            latents.append(latent.reshape(-1, 4))
    noise = np.concatenate(noise)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and len(np.unique(noise.round(3))) > 1000
    np.testing.assert_allclose(np.concatenate(latents).mean(0), 0, atol=0.2)
    np.testing.assert_allclose(np.concatenate(latents).std(0), 1, atol=0.2)


def refusal(capsys, code, name):
    """The one message of an entry point that stopped over a mistake."""
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert (
        errors.count(f"{name}:") == 1 and errors.rpartition(f"{name}:")[0].strip() == "" and "Traceback" not in errors
    )
    return errors


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
    encoders = FrozenEncoders(*folders, 6, make_mesh((1, 1, 1, 1), jax.devices()[:1]), lower=True)
    lower = [text.strip().lower() for text in captions]
    assert encoders.cut(captions) == cut(lower) and 0 < cut(lower) < cut(captions) < 12


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
