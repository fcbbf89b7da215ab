"""Small sources whose pictures tell what they are, encoders in NumPy, and how data sets are made of them."""

import errno
import hashlib
import io
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ec_dit.data.batch import Text
from ec_dit.data.captions import PLAIN, caption_facts
from ec_dit.data.images import to_float
from ec_dit.data.records import Record
from ec_dit.preparation import units, writing
from ec_dit.preparation.filters import Filters
from ec_dit.preparation.source import Shard, Skipped, ranges

SMALL = Filters(min_size=1)


def write(source, out, **options):
    """A data set with a small tokenizer, without a bar; each of the source's shards is a unit."""
    options.setdefault("num_shards", len(source.shards()) or None)
    return writing.write(source, out, **{"chosen": SMALL, "vocab_size": 64, "progress": False} | options)


def hashes(folder):
    """Of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def png(pixels):
    """Bytes of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(split, index, width=12):
    """Red holds the index, green rises to the right. Even records may be mirrored."""
    pixels = np.zeros((8, width, 3), np.uint8)
    pixels[..., 0] = index % 256
    pixels[..., 1] = np.arange(width) * 10
    caption = f"number {index} of {split}"
    return Record(f"{split}-{index}", png(pixels), (caption,), (), split, index % 2 == 0, meta={"index": index})


class BadDisk(io.FileIO):
    """A file whose bytes in the range `bad` the disk does not give."""

    def __init__(self, path, bad):
        super().__init__(str(path), "rb")
        self._bad = bad

    def readinto(self, buffer):
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size=-1):
        start = self.tell()
        stop = start + size if size >= 0 else 2**63
        if start < self._bad.stop and stop > self._bad.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@dataclass(frozen=True)
class CountingOptions:
    train: int = 23
    validation: int = 7
    skipped: int = 0
    width: int = 12


class CountingSource:
    """Pictures 8 pixels high, in shards of ten; `read` notes which shards were asked for."""

    name = "counting"
    libraries = ()
    length = 10

    def __init__(self, options=None):
        self.options = options or CountingOptions()
        self.read = []

    def splits(self):
        return ("train", "validation")

    def published(self):
        return {}

    def unread(self):
        return {}

    def _places(self):
        places = [(split, index) for split in self.splits() for index in range(getattr(self.options, split))]
        return places + [("bad", index) for index in range(self.options.skipped)]

    def shards(self):
        return ranges(len(self._places()), self.length)

    def records(self, shard):
        self.read.append(shard)
        for split, index in self._places()[shard * self.length :][: self.length]:
            if split == "bad":
                yield Skipped(f"bad-{index}", f"damaged image: number {index}")
            else:
                yield record(split, index, self.options.width)


@dataclass(frozen=True)
class ListedOptions:
    note: str = ""


class Listed:
    """A shard of each list of examples; `read` notes which shards were asked for."""

    name = "listed"
    libraries = ()

    def __init__(self, *shards, note=""):
        self.options = ListedOptions(note)
        self._shards = shards
        self.read = []

    def splits(self):
        return ("train", "validation")

    def published(self):
        return {}

    def unread(self):
        return {}

    def shards(self):
        return [Shard(f"list {number}") for number in range(len(self._shards))]

    def records(self, shard):
        self.read.append(shard)
        yield from self._shards[shard]


class Breaking:
    """Another source whose shard `shard` breaks off, the first time, after `after` examples."""

    def __init__(self, source, shard, after):
        self._source, self._shard, self._after = source, shard, after
        self.name, self.options, self.libraries = source.name, source.options, source.libraries
        self.read = source.read

    def splits(self):
        return self._source.splits()

    def published(self):
        return self._source.published()

    def unread(self):
        return self._source.unread()

    def shards(self):
        return self._source.shards()

    def records(self, shard):
        for number, item in enumerate(self._source.records(shard)):
            if shard == self._shard and number == self._after:
                self._shard = None
                raise OSError("connection lost")
            yield item


SHAPES = ((16, 16), (16, 24), (24, 16))  # pixels


@dataclass(frozen=True)
class MixedOptions:
    train: tuple[int, ...] = (13, 7, 3)
    validation: tuple[int, ...] = (5, 2, 0)
    seed: int = 0


class MixedSource:
    """Noise of three shapes, mixed, in shards of nine; one to three captions, which may have weights."""

    name = "mixed"
    libraries = ()
    length = 9

    def __init__(self, options=None):
        self.options = options or MixedOptions()
        self.read = []
        self.items = []
        rng = np.random.default_rng(self.options.seed)
        for split in self.splits():
            shapes = np.repeat(np.arange(3), getattr(self.options, split))
            self.items += [self._record(split, i, SHAPES[n], rng) for i, n in enumerate(rng.permutation(shapes))]

    def _record(self, split, index, shape, rng):
        captions = tuple(f"text {n} of {split} {index}" for n in range(1 + index % 3))
        weights = (3.0, 1.0) if len(captions) == 2 else ()
        pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
        meta = {"shape": [side // 8 for side in shape]}
        return Record(f"{split}-{index}", png(pixels), captions, weights, split, index % 2 == 0, meta)

    def splits(self):
        return ("train", "validation")

    def published(self):
        return {}

    def unread(self):
        return {}

    def shards(self):
        return ranges(len(self.items), self.length)

    def records(self, shard):
        self.read.append(shard)
        yield from self.items[shard * self.length :][: self.length]


class BlockEncoders:
    """Latents are means of 8x8 pixels; a text's embedding follows from a hash of it, with gaps between its tokens."""

    factor, channels, width, length = 8, 3, 6, 5

    def __init__(self, gain=3.0, pooled_width=0):
        self._gain, self.pooled_width = gain, pooled_width
        self.batches = []  # how many pictures were encoded together

    def images(self, image_BYXZ):
        self.batches.append(len(image_BYXZ))
        batch, rows, columns, _ = image_BYXZ.shape
        blocks = image_BYXZ.astype(np.float64).reshape(batch, rows // 8, 8, columns // 8, 8, 3)
        mean_BYXZ = self._gain * blocks.mean((2, 4)) + [0.5, 0, -1]
        return mean_BYXZ.astype(np.float32), (0.25 + 0.5 * np.abs(mean_BYXZ)).astype(np.float32)

    def texts(self, captions):
        text_BTM = np.zeros((len(captions), self.length, self.width), np.float32)
        mask_BT = np.zeros((len(captions), self.length), bool)
        for row, caption in enumerate(captions):
            rng = np.random.default_rng(list(hashlib.sha256(caption.encode()).digest()))
            count = 1 + rng.integers(self.length)
            mask_BT[row, rng.permutation(self.length)[:count]] = True
            text_BTM[row] = rng.normal(size=(self.length, self.width))
        pooled_BM = text_BTM[:, 0, : self.pooled_width] if self.pooled_width else None
        return Text(text_BTM, mask_BT, pooled_BM)

    def cut(self, captions):
        return sum(len(caption.split()) > self.length for caption in captions)


def latents_of(item, encoders=None):
    """What the encoders make of a record and of its mirror image: float16 (mean, deviation) of each."""
    pixels = to_float(np.asarray(Image.open(io.BytesIO(item.image))))
    pictures = [pixels, pixels[:, ::-1]] if item.flip else [pixels]
    found = [(encoders or BlockEncoders()).images(picture[None]) for picture in pictures]
    return [(mean[0].astype(np.float16), std[0].astype(np.float16)) for mean, std in found]


def plan(encoders=None, *, batch_size=4, text_type="bfloat16", flip=True):
    """To encode a MixedSource."""
    encoders = encoders or BlockEncoders()
    text = {"sha256": ["bb"], "width": 6, "length": 5, "pooled": encoders.pooled_width, "paths": ["/models/t5"]}
    facts = {
        "autoencoder": {"sha256": "aa", "factor": 8, "channels": 3, "path": "/models/vae"},
        "text": text | {"type": text_type} | caption_facts(PLAIN),
        "pictures": {"shapes": [list(shape) for shape in SHAPES], "flip": flip, "batch_size": batch_size},
    }
    return units.EncodingPlan(encoders, facts, SHAPES, batch_size, text_type, flip)
