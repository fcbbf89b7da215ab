"""Names of a data set's files, beside TFDS's own."""

import pytest
import tensorflow_datasets as tfds

from ec_dit.data import layout


@pytest.mark.parametrize("units", [1, 12, 99_999, 123_456])
@pytest.mark.parametrize("split", ["train", "train_32x24"])
def test_files_have_the_names_that_tfds_looks_for(units, split, tmp_path):
    template = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path,
        dataset_name="mine",
        split=split,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    for unit in {0, units // 2, units - 1}:
        name = layout.file_name("mine", split, unit, units)
        assert name == template.sharded_filepath(shard_index=unit, num_shards=units).name
        assert layout.is_record_file(name) and layout.is_record_file(name, "mine")
        assert layout.is_record_file(name, "mine", units)
        assert not layout.is_record_file(name, "mine", units + 1)
        assert not layout.is_record_file(name, "yours")


def test_other_files_are_no_records():
    for name in ("report.json", "mine-train.array_record-00000-of-00001.tmp", "mine-train.tfrecord-00000-of-00001"):
        assert not layout.is_record_file(name, "mine")
    assert layout.is_record_file("a.b-train.array_record-00000-of-00001", "a.b")
    assert not layout.is_record_file("axb-train.array_record-00000-of-00001", "a.b")  # names are no patterns
    assert not layout.is_record_file(layout.REPORT)


def test_a_split_of_one_shape_has_a_name_that_says_it():
    assert layout.split_name("train", (32, 24)) == "train_32x24"
    assert layout.split_of("train_32x24") == ("train", (32, 24))
    assert layout.split_of("of_two_words_8x128") == ("of_two_words", (8, 128))
