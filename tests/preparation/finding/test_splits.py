"""Published splits are kept as they are, and test is not trained on unless asked for."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ec_dit.core.errors import UserError
from ec_dit.preparation.finding import splits
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.coco import CocoOptions, CocoSource
from ec_dit.preparation.sources.found.folder import FolderOptions, FolderSource
from ec_dit.preparation.sources.found.parquet import ParquetOptions, ParquetSource
from ec_dit.preparation.sources.found.webdataset import WebdatasetOptions, WebdatasetSource
from tests.preparation.sources.test_webdataset import JPEG, example, tar

HUGGING_FACE = [
    "data/train-00000-of-00002",
    "data/train-00001-of-00002",
    "data/test-00000-of-00001",
    "data/validation-00000-of-00001",
]


def tables(root, *names):
    for name in names:
        path = root / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [JPEG] * 20, "caption": ["x"] * 20}), path)
    return root


def kept(source):
    """The splits of the records of each file."""
    found = {}
    for item in everything(source):
        found.setdefault(item.id.split("#")[0].removesuffix(".parquet"), set()).add(item.split)
    return found


def parquet(path, **options):
    return ParquetSource(ParquetOptions(str(path), **{"validation_share": 0.3} | options))


def test_tables_as_hugging_face_publishes_them(tmp_path):
    source = parquet(tables(tmp_path, *HUGGING_FACE))
    assert kept(source) == {
        "data/train-00000-of-00002": {"train"},
        "data/train-00001-of-00002": {"train"},
        "data/validation-00000-of-00001": {"validation"},
    }
    assert source.unread() == {"file of the split test": 1}
    assert source.published() == {"test": "not read", "train": "kept as train", "validation": "kept as validation"}


def test_test_is_trained_on_where_asked_for(tmp_path):
    tables(tmp_path, *HUGGING_FACE)
    found = kept(parquet(tmp_path, train="train+test"))
    assert found["data/test-00000-of-00001"] == {"train"} and found["data/validation-00000-of-00001"] == {"validation"}
    assert kept(parquet(tmp_path, train="test", validation="val"))["data/test-00000-of-00001"] == {"train"}
    found = kept(parquet(tmp_path, train="train+test+validation", validation=None))
    assert len(found) == 4 and set.union(*found.values()) == {"train", "validation"}
    assert kept(parquet(tmp_path, validation="test")) == {
        **{name: {"train"} for name in HUGGING_FACE[:2]},
        HUGGING_FACE[2]: {"validation"},
    }


def test_a_share_is_held_out_where_no_validation_was_published(tmp_path):
    for names in (HUGGING_FACE[:2], HUGGING_FACE[:3], ["a", "b"]):
        folder = tables(tmp_path / str(len(names)) / names[0][:1], *names)
        found = kept(parquet(folder))
        told = "kept as train, but for a share that is held out"
        assert parquet(folder).published().get("train") == (None if names == ["a", "b"] else told)
        assert list(found) == names[:2] and set.union(*found.values()) == {"train", "validation"}


def test_what_the_path_names_is_asked_for(tmp_path):
    tables(tmp_path, *HUGGING_FACE)
    for path in ("data/test-*.parquet", "data/{test}-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"):
        assert set.union(*kept(parquet(tmp_path / path)).values()) == {"train", "validation"}
    found = kept(parquet(tmp_path / "data/t*.parquet"))
    assert list(found) == ["train-00000-of-00002", "train-00001-of-00002"]
    only = tables(tmp_path / "only", "test-0")
    with pytest.raises(UserError, match=r"parquet: .*only has no split to train on, but test; .*--option=train=test"):
        parquet(only)
    assert set(kept(parquet(only, train="test"))) == {"test-0"}


def test_validation_may_be_trained_on(tmp_path):
    tables(tmp_path, *HUGGING_FACE)
    held_out = "kept as train, but for a share that is held out"
    for train, names in (("train+validation", HUGGING_FACE[:2] + HUGGING_FACE[3:]), ("val", HUGGING_FACE[3:])):
        source = parquet(tmp_path, train=train)
        found = kept(source)
        assert sorted(found) == names and set.union(*found.values()) == {"train", "validation"}
        assert source.published()["validation"] == held_out


@pytest.mark.parametrize(("name", "options"), [("validation-0", {}), ("test-0", {"validation": "test"})])
def test_the_advice_for_a_set_without_a_split_to_train_on_works(tmp_path, name, options):
    tables(tmp_path, name)
    with pytest.raises(UserError, match="has no split to train on") as caught:
        parquet(tmp_path, **options)
    advised = dict(re.findall(r"--option=(\w+)=(\w+)", str(caught.value)))
    assert advised.pop("train") == name[:-2] and advised in ({}, {"validation": "null"})
    options |= {"train": name[:-2]} | dict.fromkeys(advised)
    assert kept(parquet(tmp_path, **options)) == {name: {"train", "validation"}}


def test_mistakes(tmp_path):
    tables(tmp_path, "train-0", "val-0")
    with pytest.raises(UserError, match=r"train names the split 'tets'; .* has train, validation"):
        parquet(tmp_path, train="train+tets")
    with pytest.raises(UserError, match=r"train names the split 'trian' \(did you mean train\?\)"):
        parquet(tmp_path, train="trian")
    with pytest.raises(UserError, match=r"validation names the split 'test'"):
        parquet(tmp_path, validation="test")
    with pytest.raises(UserError, match=r"'train' is named for train and for validation; .*--option=validation=null"):
        parquet(tmp_path, validation="train")


def test_tars(tmp_path):
    for name in ("cc-train-0000", "cc-train-0001", "cc-validation-0000", "testing/0", "extra"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(tar(*(part for n in range(20) for part in example(f"{n}"))))
    source = WebdatasetSource(WebdatasetOptions(str(tmp_path)))
    found = {}
    for item in everything(source):
        found.setdefault(item.id.rpartition("/")[0], set()).add(item.split)
    assert found == {
        "cc-train-0000": {"train"},
        "cc-train-0001": {"train"},
        "cc-validation-0000": {"validation"},
        "extra": {"train"},
    }
    assert source.unread() == {"file of the split test": 1}


def test_pictures_in_folders(tmp_path):
    for name in (
        "train/cat/test.jpg",
        "train/dog/1.jpg",
        "val/cat/2.jpg",
        "test/cat/3.jpg",
        "test-drive.jpg",
        "best/4.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
        (tmp_path / name).with_suffix(".txt").write_text("x")
    source = FolderSource(FolderOptions(str(tmp_path), validation_share=0.9))
    assert {item.id: item.split for item in everything(source)} == {
        "best/4.jpg": "train",
        "test-drive.jpg": "train",
        "train/cat/test.jpg": "train",
        "train/dog/1.jpg": "train",
        "val/cat/2.jpg": "validation",
    }
    assert source.unread() == {"file of the split test": 1}


def test_coco_of_several_years(tmp_path):
    names = ["train2017/1.jpg", "val2017/2.jpg", "test2017/3.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(JPEG)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": "x"} for number in range(3)]
    listing = tmp_path / "captions.json"
    listing.write_text(json.dumps({"images": images, "annotations": annotations}))
    source = CocoSource(CocoOptions(str(tmp_path), annotations=str(listing), validation_share=0.9))
    assert {item.id: item.split for item in everything(source)} == {names[0]: "train", names[1]: "validation"}


def test_words_that_name_splits():
    shards = {
        "train-00000-of-00002.tar": "train",
        "default/test/0000.parquet": "test",
        "coco_val2014_000.tar": "validation",
        "my.dev.parquet": "validation",
        "evaluation/0.tar": "test",
        "latest-0.tar": None,
        "contest.parquet": None,
        "retrain.tar": None,
        "trainee/0.tar": None,
        "0000.tar": None,
    }
    assert {name: splits.of_shard(name) for name in shards} == shards
    pictures = {
        "val2017/1.jpg": "validation",
        "a/Test/1.jpg": "test",
        "my test/1.jpg": None,
        "train.jpg": None,
        "dev_1/a/b": "validation",
    }
    assert {name: splits.of_picture(name) for name in pictures} == pictures
