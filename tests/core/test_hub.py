"""Published folders: what is read of them, and what each kind of damage is told by."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.hub import TensorFiles

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.arange(4, dtype=np.float32),
    "b.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
}


def contents(folder):
    files = TensorFiles(folder)
    return {name: files.read(name) for name in files.tensors}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_what_is_written_is_read(shard_bytes, tmp_path):
    scalar = {"scale": np.array(2.5, np.float32), "half": np.ones((2, 3), ml_dtypes.bfloat16)}
    tensors = TENSORS | scalar | {"turned": TENSORS["a.weight"].T}
    export.write(tmp_path, "model", tensors.items(), shard_bytes)
    assert_same(contents(tmp_path), tensors)
    assert {name: info.shape for name, info in TensorFiles(tmp_path).tensors.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model.safetensors"] if shard_bytes == 10**9 else "model.safetensors.index.json" in names
    export.write(tmp_path, "model", TENSORS.items(), 60)  # over the old files, in another number
    assert_same(contents(tmp_path), TENSORS)


def test_a_process_that_holds_nothing_writes_nothing(tmp_path):
    export.write(tmp_path, "model", TENSORS.items(), 60)
    export.write(tmp_path, "model", [(name, None) for name in TENSORS])
    assert_same(contents(tmp_path), TENSORS)


def test_parts_are_read(tmp_path):
    export.write(tmp_path, "model", TENSORS.items())
    files = TensorFiles(tmp_path)
    np.testing.assert_array_equal(files.read("b.weight", np.s_[1:2, :, 1:3]), TENSORS["b.weight"][1:2, :, 1:3])


def test_a_file_alone(tmp_path):
    save_file(TENSORS, tmp_path / "any.safetensors")
    assert_same(contents(tmp_path / "any.safetensors"), TENSORS)
    (tmp_path / "config.json").write_text('{"width": 3}')
    assert hub.config(tmp_path / "any.safetensors") == {"width": 3} == hub.config(tmp_path)


def test_names_are_changed(tmp_path):
    tensors = {"old.weight": TENSORS["a.weight"], "new.weight": TENSORS["a.weight"], "other": TENSORS["a.bias"]}
    for shard_bytes in (10**9, 1):  # an index promises both names
        export.write(tmp_path, "model", tensors.items(), shard_bytes)
        files = TensorFiles(tmp_path, lambda name: name.replace("old", "new"))
        assert sorted(files.tensors) == ["new.weight", "other"]
        np.testing.assert_array_equal(files.read("new.weight"), TENSORS["a.weight"])


@pytest.mark.parametrize("stem", hub.STEMS)
def test_of_several_variants_the_plain_one_is_read(stem, tmp_path):
    save_file(TENSORS, tmp_path / f"{stem}.safetensors")
    save_file({"half": TENSORS["a.bias"]}, tmp_path / f"{stem}.fp16.safetensors")
    assert_same(contents(tmp_path), TENSORS)
    (tmp_path / f"{stem}.safetensors").unlink()
    assert contents(tmp_path).keys() == {"half"}  # the only one
    save_file(TENSORS, tmp_path / f"{stem}.non_ema.safetensors")
    with pytest.raises(
        UserError, match=rf"several sets of weights: {stem}.fp16.safetensors, {stem}.non_ema.saf.*own path"
    ):
        TensorFiles(tmp_path)


def test_a_variant_with_an_index(tmp_path):
    save_file(TENSORS, tmp_path / "model.fp16-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "model.fp16-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert_same(contents(tmp_path), TENSORS)


def write_index(folder, weight_map):
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"a.bias": TENSORS["a.bias"]}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a.weight": "model-00003-of-00003.safetensors"},
            r"model-00003-of-00003.safetensors is missing; it holds a.weight",
        ),
        (
            {"a.weight": "model-00001-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"},
            r"model-00001-of-00002.safetensors: the index promises 1 tensors that are not there, first c; download",
        ),
        ({"a.weight": "../model.safetensors"}, r"names a file outside its folder: ../model.safetensors"),
        (None, r"has no weight_map from tensors to files; download it again"),
        ({"a.weight": 3}, r"has no weight_map from tensors to files"),
    ],
)
def test_a_wrong_index_is_refused(weight_map, message, tmp_path):
    write_index(tmp_path, weight_map)
    with pytest.raises(UserError, match=message):
        TensorFiles(tmp_path)


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(TENSORS))
    with pytest.raises(
        UserError, match=r"pytorch_model.bin is a pickle; weights are read from safetensors only, since a"
    ):
        TensorFiles(tmp_path)
    with pytest.raises(
        UserError, match=r"pytorch_model.bin is no safetensors file; .* write them with save_pretrained"
    ):
        TensorFiles(tmp_path / "pytorch_model.bin")
    for start in (b"PK\x03\x04", pickle.dumps(TENSORS, 2), pickle.dumps(TENSORS, 4)):
        (tmp_path / "model.safetensors").write_bytes(start + bytes(100))
        with pytest.raises(
            UserError, match=r"model.safetensors: this is a pickle under another name; weights are read from"
        ):
            TensorFiles(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    whole, path = save(TENSORS), tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    damages = {
        whole[:-4]: r"truncated: 156 of 160 bytes of data are there, tensor \S+ is the first that is cut. Download it",
        whole[: header + 1]: r"truncated: 1 of 160 bytes",
        whole[: header - 5]: r"this is no safetensors file, or one cut within its header \(\d+ bytes\); download",
        whole[:5]: r"cut within its header \(5 bytes\)",
        b"": r"cut within its header \(0 bytes\)",
        whole[:9] + b"!" + whole[10:]: r"its header is damaged; download it again",
        b"<!DOCTYPE html><html>not found</html>": r"this is no safetensors file",
    }
    for data, message in damages.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"model.safetensors: .*{message}"):
            TensorFiles(tmp_path)


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no file or folder .*none"):
        TensorFiles(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"gs://bucket/t5: published weights are read from a disk; copy the folder, or mount"
    ):
        TensorFiles("gs://bucket/t5")
    with pytest.raises(UserError, match=r"holds no safetensors weights \(model.safetensors or diff.*; download them"):
        TensorFiles(tmp_path)
    for inside in ("text_encoder", "transformer"):
        export.write(tmp_path / inside, "model", TENSORS.items())
    with pytest.raises(UserError, match=r"did you mean a folder in it: text_encoder, transformer\?"):
        TensorFiles(tmp_path)


def test_config(tmp_path):
    with pytest.raises(UserError, match=r"config.json is missing: it says what the weights beside it are; download it"):
        hub.config(tmp_path)
    for text, message in {
        "": "it is empty",
        "{": "it is no JSON",
        "[1]": "it holds a list, not an object",
        "\x80": "it is no JSON",
        "[" * 100_000: "its JSON is nested too deeply",
    }.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config.json is damaged: {message}.* Download it again"):
            hub.config(tmp_path)


def test_fields():
    found = {"width": 4, "rate": 1, "act": "relu", "bias": True, "none": None}
    values = hub.fields(found, "config.json", width=int, rate=float, act="gelu", bias=False, none=3, absent=0.5)
    assert values == {"width": 4, "rate": 1, "act": "relu", "bias": True, "none": 3, "absent": 0.5}
    for wanted, message in {
        ("depth", int): r"config.json has no 'depth'; it is not the config.json of these weights, or is damaged",
        ("act", int): r"config.json: act is 'relu', not of the kind int",
        ("bias", 3): r"bias is True, not of the kind int",
        ("width", False): r"width is 4, not of the kind bool",
    }.items():
        with pytest.raises(UserError, match=message):
            hub.fields(found, "config.json", **dict([wanted]))


def test_supported():
    hub.supported({"act": "relu"}, "config.json", act=("relu", "gelu"), other=None)
    with pytest.raises(UserError, match=r"config.json: act is 'silu'; supported: 'relu', 'gelu'\."):
        hub.supported({"act": "silu"}, "config.json", act=("relu", "gelu"))


def test_long_lists_of_names_are_cut():
    assert hub.flag_names(["a", "b"]) == "a, b"
    assert hub.flag_names(list("abcde")) == "a, b, c and 2 more"


def test_an_index_that_names_another_file_is_refused(tmp_path):
    export.write(tmp_path, "model", TENSORS.items(), 60)
    path = tmp_path / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    first, second = sorted(set(found["weight_map"].values()))[:2]
    swapped = {first: second, second: first}
    found["weight_map"] = {name: swapped.get(file, file) for name, file in found["weight_map"].items()}
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"is in this file, but the index says model-0000\d-of"):
        TensorFiles(tmp_path)


def test_shards_without_their_index_ask_for_it(tmp_path):
    export.write(tmp_path, "model", TENSORS.items(), 60)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"model-00001-of-0000\d.safetensors and the like without their index"):
        TensorFiles(tmp_path)
