import json

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.images import decode
from ec_dit.data.records import Record
from ec_dit.preparation import filters
from ec_dit.preparation.source import Skipped, everything
from tests import sets
from tests.sets import BlockEncoders, Listed, MixedSource, hashes, write


def good(count, start=0):
    return [sets.record("train", index) for index in range(start, start + count)]


def test_preparing_twice_gives_the_same_bytes(tmp_path, counting, numbers):
    write(counting(), tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(numbers.path)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_the_files_of_a_set(numbers, mixed):
    of_units = [f"{number:05d}-of-" for number in range(4)]
    described = {"dataset_info.json", "features.json", "report.json", "skipped.jsonl"}
    assert {path.name for path in numbers.path.iterdir()} == described | {
        "tokenizer.model",
        *(f"counting-train.array_record-{unit}00003" for unit in of_units[:3]),
        "counting-validation.array_record-00002-of-00003",
    }
    names = {path.name for path in mixed.path.iterdir()}
    assert names >= described | {"encoding.safetensors"} and "tokenizer.model" not in names
    assert {name.split("-")[1] for name in names if name.startswith("mixed")} == {
        *("train_2x2.array_record", "train_2x3.array_record", "train_3x2.array_record"),
        *("validation_2x2.array_record", "validation_2x3.array_record"),
    }


def test_the_report_counts_and_every_skipped_example_is_listed(tmp_path, counting):
    out = tmp_path / "set"
    odd = Skipped("d\u00e9j\u00e0 \u2028 \x85 vu", "download failed: \u2028 \ud800", "validation", asked=True)
    tiny = Record("tiny", sets.png(np.zeros((3, 40, 3), np.uint8)), ("a line",))
    blank = Record("blank", good(1)[0].image, (" ",))
    bad = [Skipped(f"bad-{n}", f"damaged image: number {n}") for n in range(2)]
    chosen = filters.Filters(min_size=4)
    report = write(Listed([*good(9), bad[0]], [odd, tiny], [blank, bad[1]]), out, chosen=chosen, max_skipped_share=0.3)
    assert report.kept == {"train": 9} and report.source == "listed" and report.options == {"note": ""}
    assert report.skipped == {"damaged image": 2, "download failed": 1, "tiny": 1, "empty caption": 1}
    assert next(iter(report.skipped)) == "damaged image"  # the most frequent first
    assert report.filters["min_size"] == 4 and report.filters["image_size"] is None
    assert "sentencepiece" in report.libraries and "skipped, damaged image" in report.table()
    opened = dataset.open(out)
    assert opened.report == report
    assert list(opened.skipped()) == [
        {"split": "train", "id": "bad-0", "reason": "damaged image: number 0", "asked": False},
        {"split": "validation", "id": odd.id, "reason": "download failed: \u2028 ?", "asked": True},
        {"split": "train", "id": "tiny", "reason": "tiny: 40x3, shorter side under 4", "asked": True},
        {"split": "train", "id": "blank", "reason": "empty caption", "asked": False},
        {"split": "train", "id": "bad-1", "reason": "damaged image: number 1", "asked": False},
    ]
    assert json.loads((out / "report.json").read_text())["kept"] == {"train": 9}
    assert set(report.files) == {path.name for path in out.iterdir()} - {"report.json"}
    for name, (size, digest) in report.files.items():
        assert (size, digest) == ((out / name).stat().st_size, (hashes(out)[name],))


def test_only_examples_at_fault_count_against_the_share(tmp_path):
    asked = [Skipped(f"small-{n}", "tiny: 1x1", asked=True) for n in range(50)]
    shards = [*good(9), *asked[:25]], [*asked[25:], Skipped("bad-0", "damaged image: cut short")]
    assert write(Listed(*shards), tmp_path / "set", max_skipped_share=0.1).skipped == {"tiny": 50, "damaged image": 1}
    with pytest.raises(
        UserError,
        match=r"source listed: 1 of 10 examples cannot be used, more than max_skipped_share=0.09:\n"
        r"  1 x damaged image, such as bad-0: cut short\n"
        r"  all of them: .*/.other.incomplete/skipped.jsonl\n"
        r"Mend them, or raise max_skipped_share.$",
    ):
        write(Listed(*shards), tmp_path / "other", max_skipped_share=0.09)
    listed = (tmp_path / ".other.incomplete" / "skipped.jsonl").read_text().splitlines()
    assert len(listed) == 51 and json.loads(listed[-1])["id"] == "bad-0"
    assert write(Listed(*shards), tmp_path / "other", max_skipped_share=0.1).skipped["tiny"] == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]


def test_after_a_refusal_mended_examples_are_read_again(tmp_path):
    bad = [Skipped(f"bad-{n}", "damaged image") for n in range(3)]
    first = Listed(good(5), [*good(5, 5), *bad])
    with pytest.raises(UserError, match=r"3 of 13 examples cannot be used"):
        write(first, tmp_path / "set")
    mended = Listed(good(5), good(8, 5))
    assert write(mended, tmp_path / "set").kept == {"train": 13}
    assert first.read == [0, 1] and mended.read == [1]
    with pytest.raises(UserError, match=r"no example is left to train on:\n  2 x tiny, such as 0\n  all of them: "):
        write(Listed([Skipped(f"{n}", "tiny", asked=True) for n in range(2)]), tmp_path / "other")
    assert write(Listed(good(2)), tmp_path / "other").kept == {"train": 2}


def test_hopeless_sources_end_early(tmp_path, counting):
    source = counting(train=600, validation=0, skipped=30_000)
    source.length = 100
    with pytest.raises(
        UserError, match=r"601 of the first 1,201 examples cannot .*:\n  601 x damaged image, such as bad-0: number 0"
    ):
        write(source, tmp_path / "set", max_skipped_share=0.3)
    assert max(source.read) <= 13  # of 306 shards
    few = counting(train=1000, validation=0, skipped=100)
    few.length = 550
    assert write(few, tmp_path / "few", max_skipped_share=0.1).skipped == {"damaged image": 100}


def test_what_filters_leave_out_ends_nothing_early(tmp_path):
    asked = [Skipped(f"small-{n}", "tiny: 1x1", asked=True) for n in range(2000)]
    assert write(Listed([*asked, *good(2)]), tmp_path / "set", max_skipped_share=0).kept == {"train": 2}


@pytest.mark.parametrize("share", [float("nan"), -1, 1.01])
def test_a_share_is_from_0_to_1(tmp_path, counting, share):
    with pytest.raises(UserError, match=r"max_skipped_share is .*; it must be from 0 to 1"):
        write(counting(), tmp_path / "set", max_skipped_share=share)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_on(tmp_path, counting):
    with pytest.raises(UserError, match=r"the source has none"):
        write(counting(train=0, validation=0), tmp_path / "set")
    with pytest.raises(
        UserError, match=r"no example is left to train on \(7 x validation are\) \(the source has none\)"
    ):
        write(counting(train=0), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_shows_what_was_there_and_leaves_the_list(tmp_path, counting):
    asked = [Skipped(f"b-{n}", "not lang==en: d\u00e9", asked=True) for n in range(2)]
    bad = [Skipped(f"a-{n}", f"no caption: it has title, url{n} (did you mean title?)") for n in range(3)]
    source = Listed([*asked, *bad])
    source.unread = lambda: {".xyz": 6, "link": 1}
    with pytest.raises(UserError) as caught:
        write(source, tmp_path / "set")
    assert str(caught.value).split("\n") == [
        "source listed: no example is left to train on:",
        "  3 x no caption, such as a-0: it has title, url0 (did you mean title?)",
        "  2 x not lang==en, such as b-0: d\u00e9",
        "  not read: 6 x .xyz, 1 x link",
        f"  all of them: {tmp_path}/.set.incomplete/skipped.jsonl",
    ]
    lines = (tmp_path / ".set.incomplete" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["b-0", "b-1", "a-0", "a-1", "a-2"]
    write(counting(), tmp_path / "set")  # corrected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_to_train_on_is_explained_by_remarks_too(tmp_path):
    empty = Skipped("a.tar", "empty archive", examples=0)
    linked = [Skipped("b", "link: outside"), Skipped("c", "link: inside", examples=0)]
    lost = [Skipped(f"d/{n}", "not recognised: the example has .npy, .cap") for n in range(3)]
    parts = Skipped("d.tar (parts)", "parts passed over: 1 x .md", examples=0)
    with pytest.raises(UserError) as caught:
        write(Listed([empty], linked, [*lost, parts]), tmp_path / "set")
    assert str(caught.value).split("\n")[:-1] == [
        "source listed: no example is left to train on:",
        "  3 x not recognised, such as d/0: the example has .npy, .cap",
        "  2 x link, such as b: outside",
        "  1 x empty archive, such as a.tar",
        "  1 x parts passed over, such as d.tar (parts): 1 x .md",
    ]
    assert len((tmp_path / ".set.incomplete" / "skipped.jsonl").read_text().splitlines()) == 7


def test_hopeless_units_block_no_corrected_command(tmp_path, counting):
    bad = [[Skipped(f"{n}-{i}", "no caption: it has text") for i in range(400)] for n in range(5)]
    with pytest.raises(
        UserError, match=r"1,000 of the first 1,000 .*:\n  1,000 x no caption, such as 0-0: it has text"
    ):
        write(Listed(*bad), tmp_path / "set")
    assert len((tmp_path / ".set.incomplete" / "skipped.jsonl").read_text().splitlines()) == 1000
    assert write(counting(), tmp_path / "set").kept["train"] == 23
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_of_two_records_of_a_name_the_first_is_kept(tmp_path):
    (one,) = good(1)
    report = write(Listed([one, one]), tmp_path / "twice", max_skipped_share=0.5)
    assert report.kept == {"train": 1} and report.skipped == {"repeated id": 1}
    other = sets.record("validation", 1)
    other = Record(one.id, other.image, other.captions, split="validation")
    assert write(Listed([one, other]), tmp_path / "set").kept == {"train": 1, "validation": 1}


@pytest.mark.parametrize(("num_shards", "lengths"), [(1, [40]), (2, [20, 20]), (3, [10, 10, 20]), (4, [10] * 4)])
def test_shards_of_the_source_are_grouped(tmp_path, counting, num_shards, lengths):
    source = counting(train=40, validation=0)
    write(source, tmp_path / "set", num_shards=num_shards)
    assert source.read == [0, 1, 2, 3]
    opened = dataset.open(tmp_path / "set")
    assert list(opened["train"]) == list(everything(source))
    files = sorted(path.name for path in (tmp_path / "set").glob("counting-*"))
    assert files == [f"counting-train.array_record-{n:05d}-of-{num_shards:05d}" for n in range(num_shards)]
    info = json.loads((tmp_path / "set" / "dataset_info.json").read_text())
    assert [int(length) for length in info["splits"][0]["shardLengths"]] == lengths


@pytest.mark.parametrize("num_shards", [0, -1, 4])
def test_more_shards_than_the_source_has_are_refused(tmp_path, counting, num_shards):
    with pytest.raises(UserError, match=rf"num_shards is {num_shards}; source counting comes in 3 pieces: give 1 to 3"):
        write(counting(), tmp_path / "set", num_shards=num_shards)
    assert list(tmp_path.iterdir()) == []


def test_duplicates_are_looked_for_within_a_shard_of_the_set(tmp_path):
    rng = np.random.default_rng(0)
    noise = [sets.png(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(3)]
    shards = [[Record(f"{n}-{shard}", image, ("noise",)) for n, image in enumerate(noise)] for shard in range(2)]
    chosen = filters.Filters(duplicate_bits=0)
    assert write(Listed(*shards), tmp_path / "two", chosen=chosen).kept == {"train": 6}
    report = write(Listed(*shards), tmp_path / "one", chosen=chosen, num_shards=1)
    assert report.kept == {"train": 3} and report.skipped == {"duplicate": 3}
    reasons = {line["id"]: line["reason"] for line in dataset.open(tmp_path / "one").skipped()}
    assert reasons == {f"{n}-1": f"duplicate: of {n}-0" for n in range(3)}


def test_pictures_are_shrunk_to_the_size_asked_for(tmp_path):
    large = Record("large", sets.png(np.full((60, 40, 3), 7, np.uint8)), ("a",))
    small = Record("small", sets.png(np.full((20, 90, 3), 7, np.uint8)), ("b",))
    report = write(Listed([large, small]), tmp_path / "set", image_size=20)
    first, second = dataset.open(tmp_path / "set")["train"]
    assert decode(first.image).size == (20, 30) and second == small
    assert report.filters["image_size"] == 20


def test_latents_and_texts_are_those_of_the_encoders(mixed):
    encoders = BlockEncoders()
    source = {record.id: record for record in MixedSource().items}
    for split in mixed.splits:
        for record in mixed[split]:
            np.testing.assert_array_equal(record.latents, sets.latents_of(source[record.id]))
            text_BTM, mask_BT, _ = encoders.texts(record.captions)
            assert len(record.texts) == len(record.captions)
            for (tokens, mask_T), text_TM, wanted_T in zip(record.texts, text_BTM, mask_BT, strict=True):
                np.testing.assert_array_equal(mask_T, wanted_T)
                np.testing.assert_allclose(tokens.astype(np.float32), text_TM[wanted_T], rtol=2**-8)
    assert mixed.report.kept == {"train": 23, "validation": 7} and mixed.report.vocab_size == 0
    assert mixed.report.shapes == {"train": {"2x2": 13, "2x3": 7, "3x2": 3}, "validation": {"2x2": 5, "2x3": 2}}
    null_BTM, null_mask_BT, _ = encoders.texts([""])
    np.testing.assert_array_equal(mixed.encoding.null_text_TM, null_BTM[0])
    np.testing.assert_array_equal(mixed.encoding.null_mask_T, null_mask_BT[0])
    assert mixed.encoding.facts == sets.plan().facts


def test_moments_are_of_all_training_latents_with_the_variance_of_the_posterior(mixed):
    found = [sets.latents_of(record)[0] for record in MixedSource().items if record.split == "train"]
    mean, std = (np.concatenate([np.float64(pair[i]).reshape(-1, 3) for pair in found]) for i in (0, 1))
    assert len(mean) == 13 * 4 + 7 * 6 + 3 * 6
    np.testing.assert_allclose(mixed.encoding.mean_Z, mean.mean(0), rtol=1e-5)
    np.testing.assert_allclose(mixed.encoding.std_Z**2, mean.var(0) + (std**2).mean(0), rtol=1e-5)
    assert (mean.var(0) < 0.7 * mixed.encoding.std_Z**2).all()  # so that leaving out the posterior would show


def test_pictures_are_encoded_in_batches_of_one_size(tmp_path):
    encoders = BlockEncoders()
    write(MixedSource(), tmp_path / "set", encoding=sets.plan(encoders, batch_size=5, flip=False))
    assert set(encoders.batches) == {5}
    for record in dataset.open(tmp_path / "set")["train"]:
        assert len(record.latents) == 1


def test_int8_texts(tmp_path):
    write(MixedSource(), tmp_path / "set", encoding=sets.plan(text_type="int8"))
    record = dataset.open(tmp_path / "set")["train"][0]
    text_BTM, mask_BT, _ = BlockEncoders().texts(record.captions)
    for (tokens, _), text_TM, mask_T in zip(record.texts, text_BTM, mask_BT, strict=True):
        largest = np.abs(text_TM[mask_T]).max(1, keepdims=True)
        assert (np.abs(tokens - text_TM[mask_T]) <= largest / 254 * 1.001).all()


def test_latents_beyond_float16_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"range of float16: is the autoencoder's scaling_factor right"):
        write(MixedSource(), tmp_path / "set", encoding=sets.plan(BlockEncoders(gain=1e7)))
    assert list(tmp_path.iterdir()) == []
