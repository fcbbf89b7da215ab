import contextlib
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ec_dit.core import errors
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation import registry
from ec_dit.preparation.finding import access
from ec_dit.preparation.source import Skipped, everything
from ec_dit.preparation.sources.found.tfds import TfdsOptions, TfdsSource

PNG = b"\x89PNG\r\n\x1a\n not decoded here"


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A small set like coco_captions."""

    name = "pictures"
    code_path = None
    VERSION = tfds.core.Version("1.2.0")

    def __init__(self, examples, **options):
        self._examples = examples
        super().__init__(**options)

    def _info(self):
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(),
            "depth": tfds.features.Image(),
            "caption": text,
            "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
            "texts": tfds.features.Sequence(text),
            "image/filename": text,
            "nested": {"deep": text, "image": tfds.features.Image()},
            "score": np.float32,
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: iter(examples) for split, examples in self._examples.items()}

    def _generate_examples(self):
        raise NotImplementedError


def example(number, **fields):
    return number, {
        "image": PNG + bytes([number]),
        "depth": PNG,
        "caption": f"picture {'abcdefghijkl'[number % 12]}",
        "captions": [{"id": 1, "text": f" one\n{number}"}, {"id": 2, "text": "two"}],
        "texts": [],
        "image/filename": f"{number}.png",
        "nested": {"deep": "below", "image": PNG + bytes([number, number])},
        "score": 0.5,
        "label": 1,
        **fields,
    }


def build(folder, **examples):
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        Pictures(examples, data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder / "pictures" / "1.2.0"


def make(folder, dataset="pictures", **options):
    return TfdsSource(TfdsOptions(dataset, str(folder), **options))


def sorted_out(*args, **options):
    items = list(everything(make(*args, **options)))
    kept = {item.id: item for item in items if isinstance(item, Record)}
    return kept, {item.id: item.reason for item in items if isinstance(item, Skipped)}


def test_splits_of_its_own(tmp_path):
    build(tmp_path, train=[example(0), example(1)], validation=[example(2)], test=[example(3)])
    kept, skipped = sorted_out(tmp_path)
    assert skipped == {}
    assert {name: record.split for name, record in kept.items()} == {
        "train-0": "train",
        "train-1": "train",
        "validation-0": "validation",
    }
    assert make(tmp_path).unread() == {"example of the split test": 1}
    became = {"train": "kept as train", "validation": "kept as validation", "test": "not read"}
    assert make(tmp_path).published() == became
    both = make(tmp_path, train="train+test")
    assert both.unread() == {} and [item.image for item in everything(both)] == [PNG + bytes([n]) for n in (0, 1, 3, 2)]
    one = kept["validation-0"]
    assert (one.image, one.captions, one.weights, one.flip) == (PNG + b"\2", ("picture c",), (), True)
    assert one.meta == {"image/filename": "2.png", "nested.deep": "below", "score": 0.5, "label": 1}
    kept, _ = sorted_out(tmp_path, "pictures:1.2.0", train="test", validation="train[:50%]", id_field="image/filename")
    assert len(kept) == 2 and kept["3.png"].split == "train"
    assert {record.split for name, record in kept.items() if name != "3.png"} == {"validation"}


def test_captions_of_many_kinds(tmp_path):
    several = example(1, texts=["x", "y", "x"])
    silent = example(2, texts=[], captions=[], caption="")
    latin = example(3, texts=[], captions=[{"id": 1, "text": b"caf\xe9"}], caption=" ")
    build(tmp_path, train=[example(0), several, silent, latin])
    keys = ("captions.text=2", "texts=3", "nested.deep=1")
    kept, _ = sorted_out(tmp_path, captions=keys, id_field="image/filename")
    assert (kept["0.png"].captions, kept["0.png"].weights) == (("one 0", "two", "below"), ())
    assert (kept["1.png"].captions, kept["1.png"].weights) == (
        ("one 1", "two", "x", "y", "below"),
        (1.0, 1.0, 2.0, 1.0, 1.0),
    )
    kept, skipped = sorted_out(tmp_path, captions=("captions.text",), id_field="image/filename")
    assert skipped == {
        "2.png": "no caption: 'captions.text' is there and holds none",
        "3.png": "caption is not UTF-8 text",
    }
    assert kept["0.png"].meta == {"image/filename": "0.png", "nested.deep": "below", "score": 0.5, "label": 1}


def test_a_share_is_held_out_where_it_has_no_validation(tmp_path):
    build(tmp_path, train=[example(number) for number in range(60)])
    splits = {name: record.split for name, record in sorted_out(tmp_path, validation_share=0.3)[0].items()}
    assert list(splits) == [f"train-{number}" for number in range(60)]
    assert 8 <= list(splits.values()).count("validation") <= 28
    kept, _ = sorted_out(tmp_path, validation_share=0.0, validation=None)
    assert {record.split for record in kept.values()} == {"train"}


def test_no_example_is_trained_on_and_validated_on(tmp_path):
    build(tmp_path, train=[example(n) for n in range(20)], validation=[example(n) for n in range(20, 30)])

    def pictures(**options):
        """The numbers of the pictures of each split, which all differ."""
        of = {}
        for record in sorted_out(tmp_path, **options)[0].values():
            of.setdefault(record.split, []).append(record.image[-1])
        return of

    for train, numbers in (("train+validation", range(30)), ("validation", range(20, 30))):
        found = pictures(train=train, validation_share=0.5)  # What was validation, a share is held out of.
        assert sorted(found["train"] + found["validation"]) == list(numbers)
    found = pictures(train="train[:90%]", validation="train[90%:]")
    assert len(found["train"]) == 18 and sorted(found["train"] + found["validation"]) == list(range(20))
    for train, validation in (
        ("train", "train[90%:]"),
        ("train[:11]+validation", "train[10:]"),
        ("train[-10:]", "validation+train[5:11]"),
    ):
        with pytest.raises(UserError, match=r"examples that .* are in .* too; .*--option=validation=null"):
            make(tmp_path, train=train, validation=validation)


def test_the_rest_of_a_split_is_told(tmp_path):
    build(tmp_path, train=[example(number) for number in range(20)], test=[example(20)])
    source = make(tmp_path, train="train[:50%]+train[5:12]")
    assert source.unread() == {"example of the split train": 8, "example of the split test": 1}
    assert source.published() == {
        "train[:50%]+train[5:12]": "kept as train, but for a share that is held out",
        "rest of train": "not read",
        "test": "not read",
    }
    assert make(tmp_path, train="train[:50%]", validation="train[50%:]+test").unread() == {}


def test_shards(tmp_path, monkeypatch):
    build(tmp_path, train=[example(number) for number in range(5)], validation=[example(5)])
    source = make(tmp_path)
    assert [shard[:2] for shard in source.shards()] == [("train 0-5", 5), ("validation 0-1", 1)]
    assert source.shards() is source.shards()
    assert [item.id for item in source.records(1)] == ["validation-0"]


def test_what_is_skipped(tmp_path, monkeypatch):
    names = [example(0), example(1, **{"image/filename": "same"}), example(2, **{"image/filename": "same"})]
    folder = build(tmp_path, train=[*names, example(3, image=PNG * 20)])
    monkeypatch.setattr(access, "MAX_IMAGE", 100)
    kept, skipped = sorted_out(tmp_path, id_field="image/filename")
    assert set(kept) == {"0.png", "same", "same#2"}
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == {"3.png": "too large"}
    (file,) = folder.glob("*.array_record*")
    data = bytearray(file.read_bytes())
    data[100:140] = b"\xff" * 40
    file.write_bytes(data)
    kept, skipped = sorted_out(tmp_path)
    assert len(kept) + len(skipped) == 4 and kept
    assert {reason.split(":")[0] for reason in skipped.values()} == {"unreadable entry", "too large"}
    file.unlink()
    with pytest.raises(UserError, match=r"train.array_record.* is missing"):
        make(tmp_path)


def test_mistakes(tmp_path):
    folder = build(tmp_path, train=[example(0)])
    for dataset in ("none", "pictures:9.0.0", "pictures/config", "", "no name!"):
        with pytest.raises(UserError, match=r"tfds: there is no set .* in .*--file_format=array_record"):
            make(tmp_path, dataset)
    for options, message in (
        ({"captions": ("captoin",)}, "no field 'captoin' .did you mean caption"),
        ({"captions": ("captions.txt",)}, "no field 'captions.txt'"),
        ({"captions": ("caption.text",)}, "no field 'caption.text'"),
        ({"image": "picture"}, "no field 'picture'"),
        ({"id_field": "key"}, "no field 'key'"),
        ({"train": "trian"}, "no split 'trian' .did you mean train"),
        ({"validation": "test"}, "no split 'test'"),
        ({"train": "train[:x]"}, "cannot read split 'train"),
    ):
        with pytest.raises(UserError, match=message):
            make(tmp_path, **options)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord, which needs TensorFlow; .*file_format=array_record"):
        make(tmp_path)


def test_by_the_name_in_the_registry(tmp_path):
    build(tmp_path, train=[example(0)])
    source = registry.make_source("tfds:pictures:1.2.0", {"path": str(tmp_path)})
    assert source.name == "tfds" and source.options.dataset == "pictures:1.2.0"
    assert len(list(everything(source))) == 1


def test_an_image_within_another_field(tmp_path):
    build(tmp_path, train=[example(0), example(1)])
    kept, skipped = sorted_out(tmp_path, image="nested.image", captions=("nested.deep",))
    assert skipped == {}
    assert [record.image for record in kept.values()] == [PNG + b"\0\0", PNG + b"\1\1"]


def test_a_share_that_would_not_be_held_out(tmp_path):
    build(tmp_path, train=[example(0), example(1)], validation=[example(2)])
    options = {"path": str(tmp_path), "validation_share": 0.5}
    with pytest.raises(UserError, match=r"tfds: validation_share=0.5 would hold nothing out.*--option=validation=null"):
        registry.make_source("tfds:pictures", options)
    for free in ({"validation": None}, {"train": "train+validation"}):
        assert registry.make_source("tfds:pictures", options | free).holds_out


class Refusing:
    """A split whose examples cannot be read, as array_record's readers tell it."""

    def __init__(self, message):
        self._message = message

    def __getitem__(self, index):
        raise RuntimeError(self._message)


def test_a_disk_that_fails_is_no_damage_of_an_entry(tmp_path):
    build(tmp_path, train=[example(1), example(2)])
    source = make(tmp_path)
    source._data["train"] = Refusing("Checksum mismatch; reading x; at byte 9")
    assert [item.reason.partition(":")[0] for item in source.records(0)] == ["unreadable entry"] * 2
    source._data["train"] = Refusing("pread() failed: Input/output error; reading x; at byte 9")
    with pytest.raises(UserError, match=r"tfds: cannot read split 'train': \[Errno 5\] Input/output error") as caught:
        list(source.records(0))
    assert type(errors.explain(caught.value)) is errors.TryAgain
