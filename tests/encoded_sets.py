"""Small sets of pictures in the tars of img2dataset, tiny encoders for them, and a config that trains on what they become."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from ec_dit import main, prepare
from ec_dit.core.errors import UserError
from ec_dit.preparation.sources.drawn.emoji import EmojiOptions, EmojiSource
from tests.encoders import text_folders, tiny_vae

SETTINGS = """
from ec_dit import config


def get_config(arg=""):
    c = config.default()
    c.model.update(width=32, num_blocks=2, num_heads=2, num_kv_heads=2, head_dim=16, patch=2)
    c.moe.update(routing="expert_choice", num_experts=4, group_size="image")
    c.text.update(encoder="cached", width=16, length=20)
    c.data.update(path="set", space="latents", size=8, channels=4)
    c.flow.mask_ratio = 0.0
    c.optimizer.update(name="adamw", learning_rate=1e-3, warmup_steps=2)
    c.train.update(steps=4, batch_size=8)
    c.checkpoint.update(every=2, keep=2)
    c.log.update(every=1, validate_every=0, sample_every=0)
    c.sample.update(steps=2, batch_size=8)
    return c
"""
SHAPES = (
    (64, 64),
    (48, 80),
    (80, 48),
)  # in pixels: rows and columns of the buckets of a resolution of 64 in steps of 16
BUCKETS = ("--resolution=64", "--buckets", "--bucket_step=16")


def _levels(count):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}
    return {"block_out_channels": [8, 16, 16][:count], **blocks}


HALF, QUARTER = _levels(2), _levels(3)  # autoencoders, by the sides of their latents
_COLORS = "red green blue yellow black purple".split()


def pictures(count):
    """(what it shows, picture) of different emoji, where they can be drawn; else of patches of colour."""
    try:
        drawn = EmojiSource(EmojiOptions(image_size=96)).records(0)
    except (UserError, ImportError):
        return [_patches(number) for number in range(count)]
    plain = (record for record in drawn if hasattr(record, "image") and not record.meta["tones"])
    chosen = itertools.islice(plain, 0, 5 * count, 5)
    return [(record.caption, Image.open(io.BytesIO(record.image)).convert("RGB")) for record in chosen]


def _patches(number):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    color, other = rng.choice(_COLORS, 2)
    return f"{color} and {other} patches", small.resize((96, 96), Image.Resampling.NEAREST)


def encoded(picture, shape, kind="PNG"):
    """Its bytes, in a shape of rows and columns."""
    buffer = io.BytesIO()
    picture.resize(shape[::-1]).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def example(key, data, caption, suffix="png", **fields):
    """The members of one example, as img2dataset orders them."""
    facts = {"caption": caption, "key": key, "status": "success", **fields}
    return [(f"{key}.{suffix}", data), (f"{key}.json", json.dumps(facts).encode()), (f"{key}.txt", caption.encode())]


def tar(members):
    """The bytes of a tar of (name, bytes or TarInfo)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def write_tars(folder, shapes, tars, each):
    """Tars of `each` sound examples, whose shapes take turns."""
    folder.mkdir(parents=True)
    shown = pictures(min(100, tars * each))
    for number in range(tars):
        members = []
        for i in range(number * each, (number + 1) * each):
            caption, picture = shown[i % len(shown)]
            data = encoded(picture, shapes[i % len(shapes)])
            members += example(f"{i:09d}", data, caption, recaption=f"a drawing of {caption}")
        (folder / f"{number:05d}.tar").write_bytes(tar(members))
    return folder


def write_encoders(folder, seed=0, **changes):
    """An autoencoder and a T5 of random weights, without torch."""
    tiny_vae.published(
        folder / "vae", lambda weights: {name: w * (1 + seed / 8) for name, w in weights.items()}, **changes
    )
    text_folders.write_t5(folder / "text_encoder", seed=seed, num_layers=1)
    return folder


def encoder_flags(folder):
    return [
        f"--vae={folder / 'vae'}",
        f"--text_encoder={folder / 'text_encoder'}",
        "--text_length=20",
        "--batch_size=8",
    ]


def arguments(tars, out, encoders, *more):
    """What prepares a folder of tars."""
    held_out = "--validation_share=0.2"
    return ["--source=webdataset", f"--path={tars}", f"--out={out}", held_out, *encoder_flags(encoders), *more]


def prepared(tars, out, encoders, *more):
    """Prepares in this process; the folder."""
    assert prepare.main(["prepare", *arguments(tars, out, encoders, *more)]) == 0
    return out


def train(place, workdir, *more):
    """Trains in this process; the exit code."""
    (place / "encoded.py").write_text(SETTINGS)
    return main.main(["main", f"--config={place / 'encoded.py'}", f"--workdir={workdir}", *more])


def contents(folder):
    """The bytes of all files below a folder, by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fields(folder):
    """(file, fields as bytes) of every stored record, read without the package under test."""
    for path in sorted(Path(folder).glob("*array_record*")):
        reader = array_record_module.ArrayRecordReader(str(path))
        for data in reader.read_all():
            feature = tf_example_pb2.Example.FromString(data).features.feature
            yield path.name, {name: value.bytes_list.value[0] for name, value in feature.items()}
        reader.close()


def tfds_sizes(folder):
    """Records by split, as TFDS describes them."""
    return {name: info.num_examples for name, info in tfds.builder_from_directory(str(folder)).info.splits.items()}
