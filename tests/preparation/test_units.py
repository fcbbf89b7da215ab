"""What one unit of a source becomes, read back by ArrayRecord itself and compared with NumPy."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation import units
from ec_dit.preparation.filters import Picture
from ec_dit.preparation.pace import Pace
from tests import sets


@pytest.fixture
def out(tmp_path):
    """The files of a unit, which come from `scratch` to `set`."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "set").mkdir()
    place = SimpleNamespace(
        scratch=lambda name: tmp_path / "scratch" / name, put=lambda path: path.rename(tmp_path / "set" / path.name)
    )
    return units.Files(place, lambda split: f"{split}.array_record")


def read(path):
    """Of each record a dict of its fields."""
    reader = ArrayRecordReader(str(path))
    features = [tf_example_pb2.Example.FromString(data).features.feature for data in reader.read_all()]
    return [{k: (v.bytes_list.value or v.int64_list.value)[0] for k, v in each.items()} for each in features]


def add(unit, record):
    unit.add(record, unit.ready(Picture(record, Image.open(io.BytesIO(record.image)).convert("RGB"))))


def test_pictures_stay_or_shrink(out, tmp_path):
    """One of 8 x 12 is small enough for 8; one of 16 x 24 gets half of its sides."""
    rng = np.random.default_rng(0)
    small, large = (sets.png(rng.integers(0, 256, shape, np.uint8)) for shape in ((8, 12, 3), (16, 24, 3)))
    unit = units.PictureUnit(out, 8)
    records = [
        Record("a", small, ("one", "two"), (1.0, 3.0), "train", True, {"x": 1}),
        Record("b", large, ("three",), (), "train"),
        Record("c", small, ("never trained on",), (), "validation"),
    ]
    for record in records:
        add(unit, record)
    facts = unit.close()
    assert facts["captions"] == ["one", "two", "three"]
    assert {split: each["records"] for split, each in facts["files"].items()} == {"train": 2, "validation": 1}
    assert list((tmp_path / "scratch").iterdir()) == []
    first, second = read(tmp_path / "set" / "train.array_record")
    assert (first["image"], first["flip"], first["captions"], first["weights"], first["meta"]) == (
        *(small, 1, b'["one", "two"]', b"[1.0, 3.0]", b'{"x": 1}'),
    )
    assert Image.open(io.BytesIO(second["image"])).size == (12, 8) and second["flip"] == 0
    assert [each["id"] for each in read(tmp_path / "set" / "validation.array_record")] == [b"c"]


def test_latents_are_those_of_each_picture_alone_whatever_its_batch(out, tmp_path):
    source, plan = sets.MixedSource(), sets.plan(batch_size=4)
    unit = units.EncodedUnit(out, plan, Pace())
    for record in source.items:
        add(unit, record)
    facts = unit.close()
    assert set(plan.encoders.batches) == {4}  # filled up
    written = {}
    for path in (tmp_path / "set").iterdir():
        split, _, shape = path.name.partition(".")[0].partition("_")
        rows, columns = map(int, shape.split("x"))
        for fields in read(path):
            latents = np.frombuffer(fields["latent"], np.float16).reshape(-1, 2, rows, columns, 3)
            written[split, fields["id"].decode()] = latents
    assert len(written) == len(source.items)
    for record in source.items:
        np.testing.assert_array_equal(written[record.split, record.id], np.array(sets.latents_of(record)))
    captions = [caption for record in source.items for caption in record.captions]
    assert facts["texts"] == {"captions": len(captions), "cut": plan.encoders.cut(captions)}

    pairs = [latents[0] for (split, _), latents in written.items() if split == "train"]
    mean, std = (np.concatenate([pair[part].reshape(-1, 3) for pair in pairs]).astype(np.float64) for part in (0, 1))
    got = units.latent_moments([facts])
    np.testing.assert_allclose(got[0], mean.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got[1], np.sqrt(mean.var(0) + (std**2).mean(0)), rtol=1e-5)


def test_moments_of_units_are_those_of_all_pixels():
    rng = np.random.default_rng(1)
    parts = [rng.normal(2, 3, (pixels, 2)) for pixels in (5, 70)]
    facts = [{"moments": [part.sum(0).tolist(), (part**2).sum(0).tolist()], "pixels": len(part)} for part in parts]
    mean, std = units.latent_moments(facts)
    np.testing.assert_allclose(mean, np.concatenate(parts).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, np.concatenate(parts).std(0), rtol=1e-5)
    assert mean.dtype == std.dtype == np.float32


def test_latents_beyond_float16_are_refused(out):
    unit = units.EncodedUnit(out, sets.plan(sets.BlockEncoders(gain=1e6)), Pace())
    add(unit, sets.MixedSource().items[0])
    with pytest.raises(UserError, match="latents leave the range of float16"):
        unit.close()
