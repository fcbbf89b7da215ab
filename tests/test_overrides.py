"""The config of a command line: every way to write an override, and the message of every mistake."""

import sys

import pytest

from ec_dit import config, main, plan
from ec_dit.config import KEYS, overrides
from ec_dit.core import settings
from ec_dit.core.errors import UserError

HEAD = "from ec_dit import config, presets\n"
SHAPES = "configs/shapes.py"


def read(*arguments, name=SHAPES):
    rest, changes = overrides.split(arguments)
    assert not rest
    return overrides.read(name, changes)


@pytest.mark.parametrize(
    ("argv", "rest", "changes"),
    [
        (["--config.a.b=1", "--workdir=w"], ["--workdir=w"], [("a.b", "1")]),
        (["-config.a", "1", "x"], ["x"], [("a", "1")]),
        (["--config.a=", "--config.b=c=d\ne"], [], [("a", ""), ("b", "c=d\ne")]),
        (["--config.a", "-1", "--config.b", "--help"], ["--help"], [("a", "-1"), ("b", None)]),
        (["--noconfig.data.flip", "--config=f.py"], ["--config=f.py"], [("data.flip", "false")]),
        (["--config", "f.py:smoke", "--config.a"], ["--config", "f.py:smoke"], [("a", None)]),
        (["--config.a=1", "--", "--config.b=2"], ["--", "--config.b=2"], [("a", "1")]),
        (["--configuration.a=1", "config.a=1"], ["--configuration.a=1", "config.a=1"], []),
    ],
)
def test_overrides_are_told_from_flags(argv, rest, changes):
    assert overrides.split(argv) == (rest, changes)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("--config.train.steps=0x10", "train.steps", 16),
        ("--config.train.steps=1_000", "train.steps", 1000),
        ("--config.optimizer.eps=1", "optimizer.eps", 1.0),
        ("--config.optimizer.eps=1e-5", "optimizer.eps", 1e-5),
        ("--config.data.flip", "data.flip", True),
        ("--noconfig.data.flip", "data.flip", False),
        ("--config.data.flip=No", "data.flip", False),
        ("--config.name=a=b", "name", "a=b"),
        ("--config.log.prompts=('a, b', 'c')", "log.prompts", ("a, b", "c")),
        ("--config.log.prompts=['a']", "log.prompts", ("a",)),
        ("--config.log.prompts=a red circle", "log.prompts", ("a red circle",)),
        ("--config.log.prompts=", "log.prompts", ()),
        ("--config.eval.suites=shapes", "eval.suites", ("shapes",)),
        ("--config.sample.guidance_interval=(0, 0.5)", "sample.guidance_interval", (0, 0.5)),
        ("--config.tpu_options.xla_new=true", "tpu_options.xla_new", "true"),
        ("--config.data.options.object_size=[0.6, 0.7]", "data.options.object_size", (0.6, 0.7)),
        ("--config.data.options.ground=textured", "data.options.ground", "textured"),
    ],
)
def test_values_are_of_the_kind_of_their_key(argument, key, value):
    *sections, last = key.split(".")
    found = settings.get(read(argument), ".".join(sections[:2]) if key.startswith(config.FREE) else key)
    found = found[last] if key.startswith(config.FREE) else found
    assert found == value and type(found) is type(value)


def test_of_a_key_that_is_given_twice_the_later_value_counts():
    assert read("--config.train.steps=5", "--config.train.steps=6").train.steps == 6


def test_options_of_a_config_that_has_none():
    c = read("--config.data.options.image_size=40", name="configs/emoji.py")
    assert dict(c.data.options) == {"image_size": 40}
    c = read("--config.tpu_options.xla_one=1", "--config.tpu_options.xla_two=x", name="configs/emoji.py")
    assert dict(c.tpu_options) == {"xla_one": "1", "xla_two": "x"}


def test_options_are_those_of_the_last_source():
    arguments = (
        "--config.data.options.validation_share=0.1",
        "--config.data.source=folder",
        "--config.text.encoder=tower",
    )
    c = read(*arguments, name=f"{SHAPES}:smoke")
    assert dict(c.data.options) == {"validation_share": 0.1}  # and nothing of the scenes that the file describes


@pytest.mark.parametrize("key", [key for key in config.KEYS if key not in config.FREE])
def test_every_key_can_be_overridden(key):
    value = config.KEYS[key].default
    found = settings.get(overrides.apply(config.RunConfig(), [(key, str(value))]), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.optimizer.learning_rat=1"],
            "unknown key --config.optimizer.learning_rat (did you mean --config.optimizer.learning_rate?). Keys of optimizer",
        ),
        (["--config.model.widht=1"], "unknown key --config.model.widht (did you mean --config.model.width?)"),
        (["-config.moe.experts=8"], "unknown key --config.moe.experts (did you mean --config.moe.num_experts?)"),
        (["--config.learning_rate=1"], "unknown key --config.learning_rate (did you mean --config.optimizer.learning"),
        (["--config.zzz=1"], "unknown key --config.zzz"),
        (["--config.=1"], "unknown key --config."),
        (["--config.modle.width=1"], "unknown key --config.modle.width (did you mean --config.model.width?)"),
        (["--config.model.width.x=1"], "unknown key --config.model.width.x"),
        (["--config.model=3"], "--config.model is a section. Its keys: activation, attention, bias"),
        (["--config.data.options={}"], "--config.data.options is a section. Write --config.data.options.NAME=VALUE"),
        (["--config.tpu_options=x"], "--config.tpu_options is a section"),
        (["--config.train.steps"], "--config.train.steps has no value; write --config.train.steps=VALUE"),
        (["--config.train.steps", "--config.train.batch_size=8"], "--config.train.steps has no value"),
        (["--config.tpu_options.xla_x"], "--config.tpu_options.xla_x has no value"),
        (["--config.train.steps=1e3"], "--config.train.steps=1e3: must be a whole number"),
        (["--config.train.steps="], "--config.train.steps=: must be a whole number"),
        (["--config.train.steps=" + "9" * 5000], ": must be a whole number"),
        (["--config.optimizer.eps=small"], "--config.optimizer.eps=small: must be a number"),
        (["--config.data.flip=maybe"], "--config.data.flip=maybe: must be true or false"),
        (["--config.log.prompts=a, b"], "--config.log.prompts=a, b: must be a list"),
        (["--config.log.prompts={'a': 1}"], "must be a list"),
        (["--config.log.prompts=" + "(" * 5000], "must be a list"),
        (["--config.sample.guidance_interval=(None,1)"], "--config.sample.guidance_interval=(None, 1): give two times"),
        (
            ["--config.sample.guidance_interval=('a','b')"],
            "--config.sample.guidance_interval=('a', 'b'): give two times",
        ),
        (["--config.sample.guidance_interval=(0,nan)"], "--config.sample.guidance_interval=(0,nan): must be a list"),
        (["--config.log.prompts=(1, None)"], "--config.log.prompts=(1, None): give texts"),
        (["--config.seed=-1"], "--config.seed=-1: must not be negative, and at most 4,294,967,295"),
        (["--config.seed=4294967296"], "--config.seed=4294967296: must not be negative, and at most 4,294,967,295"),
        (["--config.seed=18446744073709551616"], "must not be negative, and at most 4,294,967,295"),
        (
            ["--config.topology=v5e:4x4x4"],
            "--config.topology=v5e:4x4x4: there is no such slice; v5e has the shapes 1x1, 2x2",
        ),
        (["--config.topology=nonsense"], "--config.topology=nonsense: write it as v5p:8x8x8; known are v4, v5p"),
        (["--config.mesh.data=-1", "--config.mesh.fsdp=-1"], "--config.mesh.fsdp=-1: only one axis may be -1"),
        (
            ["--config.tpu_options.new=1"],
            "--config.tpu_options={'new': '1'}: give options of the TPU's compiler, xla_...",
        ),
        (["--config.data.options.cell=3"], "source shapes has no option 'cell' (did you mean cells?)"),
        (["--config.data.options.cells=many"], "option cells=many of source shapes is no int"),
        (["--config.data.options.seed=-1"], "seed is -1"),
        (
            ["--config.data.options.cells=3", "--config.data.source=synthetic", "--config.text.encoder=cached"],
            "--config.data.options.cells: options are those of a source, and --config.data.source is 'synthetic'",
        ),
        (["--config.text.lower=true"], "--config.text.lower=True has no effect with text.encoder='tower'"),
        (["--config.sample.room=3"], "--config.sample.room=3 has no effect: it is for rules with a pool"),
    ],
)
def test_a_mistake_has_a_message(arguments, message, capsys):
    assert main.main(["main", f"--config={SHAPES}", "--workdir=x", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg):\n  return", "is no config file: get_config(arg) returns NoneType, not a ConfigDict"),
        ("\ndef get_config(:", "SyntaxError: invalid syntax (mine.py, line 2)"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name' (line 1)"),
        ("x = 1", "it defines no function get_config(arg)"),
        ("get_config = 3", "it defines no function get_config(arg)"),
        ("def get_config(a, b):\n  return 1", "missing 1 required positional argument: 'b'"),
        ("def get_config(arg):\n  x = 1\n  return 1 / 0", "ZeroDivisionError: division by zero (line 3)"),
        ("def get_config(arg):\n  return get_config(arg)", "RecursionError: maximum recursion depth exceeded"),
        ("raise OSError('no luck')", "OSError: no luck (line 1)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (line 2)"),
        (HEAD + "def get_config(arg):\n  c = config.default()\n  c.seed = 'x'\n  return c", "TypeError"),
        (
            HEAD + "def get_config(arg):\n  c = config.default()\n  c.optimizer.lr = 1.0\n  return c",
            "mine.py: there is no key optimizer.lr",
        ),
        (
            HEAD + "def get_config(arg):\n  c = config.default()\n  del c.optimizer.eps\n  return c",
            "mine.py: the config has no optimizer.eps: a config starts from ec_dit.config.default()",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(arg):\n  return ConfigDict()",
            "mine.py: the config has no ",
        ),
        (
            HEAD
            + "def get_config(arg):\n  c = presets.shapes()\n  c.moe.update(routing='token_choice', gate='normalized')\n"
            "  return c",
            "--config.moe.gate='normalized' has no effect with moe.routing='token_choice': it is for moe.routing 'expert_",
        ),
        (HEAD + "def get_config():\n  return presets.shapes()", "--workdir=DIR is needed"),  # a good one
    ],
)
@pytest.mark.parametrize("entry", [main, plan])
def test_a_config_file_that_does_not_load(tmp_path, capsys, entry, text, message):
    if entry is plan and "workdir" in message:
        message = "--topology=... is needed"
    (tmp_path / "mine.py").write_text(text)
    assert entry.main(["program", f"--config={tmp_path / 'mine.py'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_file_that_takes_no_argument(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + "def get_config():\n  return presets.shapes()")
    with pytest.raises(UserError, match=r"takes no argument, so not ':smoke'"):
        read(name=f"{tmp_path / 'mine.py'}:smoke")
    with pytest.raises(UserError, match=r"^config argument ':smokey' is unknown"):
        read(name=f"{SHAPES}:smokey")


def test_a_config_is_read_without_a_look_at_the_process_s_own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--config.train.steps=3"])
    assert read("--config.train.steps=5").train.steps == 5


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        (SHAPES, ["--config.moe.routing=token_choice", "--config.moe.gate=normalized"], "moe.gate"),
        (SHAPES, ["--config.moe.aux_weight=0.1"], "moe.aux_weight"),
        (SHAPES, ["--config.moe.top_k=1"], "moe.top_k"),
        (SHAPES, ["--config.model.ffn_width=256", "--config.model.ffn_factor=3"], "model.ffn_factor"),
        (SHAPES, ["--config.moe.routing=token_choice", "--config.moe.score=sigmoid"], "moe.score"),
        ("configs/shapes_dense.py", ["--config.moe.gate_scale=2.5"], "moe.gate_scale"),
        ("configs/shapes_dense.py", ["--config.moe.shared_width=64"], "moe.shared_width"),
        ("configs/shapes_dense.py", ["--config.moe.z_weight=0.1"], "moe.z_weight"),
        (SHAPES, ["--config.data.posterior=mean"], "data.posterior"),
        (SHAPES, ["--config.sample.spacing=leading"], "sample.spacing"),
        (
            SHAPES,
            ["--config.optimizer.name=adamw", "--config.optimizer.adam_learning_rate=1"],
            "optimizer.adam_learning_rate",
        ),
        ("configs/shapes_dense.py", ["--config.moe.group_size=32"], "moe.group_size"),
        ("configs/shapes_dense.py", ["--config.sample.capacity_factor=4"], "sample.capacity_factor"),
        ("configs/m_64e.py", ["--config.data.crop=random"], "data.crop"),
        ("configs/m_64e.py", ["--config.text.tower_blocks=4"], "text.tower_blocks"),
        ("configs/m_64e.py", ["--config.data.source=synthetic", "--config.data.path=x"], "data.path"),
        (
            "configs/m_64e.py",
            [
                "--config.flow.path=ddpm",
                "--config.flow.prediction=epsilon",
                "--config.sample.sampler=ddim",
                "--config.flow.time_mean=1",
            ],
            "flow.time_mean",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(name, arguments, key):
    with pytest.raises(UserError, match=rf"^--config\.{key}=\S+ has no effect with "):
        read(*arguments, name=name)


def test_what_the_file_sets_may_lose_its_effect_by_an_override():
    c = read("--config.moe.routing=dense", "--config.moe.num_experts=0")
    assert c.moe.group_size == "32"
    read("--config.moe.group_size=32", name=SHAPES)  # as it is


def test_help_tells_every_key_with_its_default_and_limits(capsys):
    assert main.main(["main", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name}: {known.facts.meaning}\n    (default: " in told for name, known in KEYS.items())
    start = "(default: 'rectified'; one of rectified, ddpm)"
    assert f"\n    {start}\n" in told
    assert "(default: 1.0; must be greater than 0; used only where flow.path is 'rectified')" in told
