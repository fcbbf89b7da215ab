"""What every entry point does around its work."""

import errno
import importlib
import io
import os
import sys
from pathlib import Path

import pytest
from absl import flags

import launch
from ec_dit import cli, convert, evaluate, main, plan, prepare, sample
from ec_dit.config import overrides
from ec_dit.core import hub
from ec_dit.core.errors import TryAgain, UserError


def call(work, *arguments):
    values = flags.FlagValues()
    cli.define_help(values)
    return cli.run("program", "", values, work, ["program", *arguments])


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a typo"), 2),
        (TryAgain("the port is taken"), 75),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 75),
        (OSError(errno.EACCES, "Permission denied", "/x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, capsys):
    assert call(raising(error)) == code
    told = capsys.readouterr().err
    assert told.startswith("program: ") and told.count("\n") == 1


@pytest.fixture
def closed_pipe():
    """A stream into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True) as stream:
        yield stream


def test_a_reader_that_goes_away_is_told(closed_pipe, monkeypatch, capsys):
    """As of `python -m ec_dit.main ... | head`, where a training ends."""
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert call(lambda: cli.say("a line")) == 2
    sys.stdout.close()  # by now /dev/null
    assert capsys.readouterr().err == "program: whoever read the output went away (standard output is closed)\n"


def test_errors_that_nobody_can_be_told_keep_their_code(closed_pipe, monkeypatch):
    """As of `2>&1 | head`."""
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    monkeypatch.setattr(sys, "stderr", closed_pipe)
    assert call(raising(TryAgain("taken"))) == 75
    assert call(lambda: cli.say("a line")) == 2
    sys.stdout.close()  # by now /dev/null


def test_another_pipe_that_breaks_may_hold_again(capsys):
    assert call(raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 75
    assert capsys.readouterr().err == "program: [Errno 32] Broken pipe\n"


def test_a_fault_of_the_program_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0)


def test_control_characters_of_data_do_not_reach_the_terminal(capsys):
    def work():
        cli.say("kept\n  a\x1b]0;title\x07b")
        raise UserError("no file '\x1b[31mred\x9b2J\r'; there is\n  another")

    assert call(work) == 2
    printed = capsys.readouterr()
    assert printed.out == "kept\n  a\\x1b]0;title\\x07b\n"
    assert printed.err == "program: no file '\\x1b[31mred\\x9b2J\\r'; there is\n  another\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nan", "flag --share=nan: it must be a finite number"),
        ("inf", "flag --share=inf: it must be a finite number"),
        ("1e999", "flag --share=1e999: it must be a finite number"),
        ("-1", "flag --share=-1: -1.0 is not a number in the range [0, 1]"),
        ("2", "flag --share=2: 2.0 is not a number in the range [0, 1]"),
        ("", "could not convert string to float: ''"),
    ],
)
def test_a_number_is_finite(text, message, capsys):
    values = flags.FlagValues()
    cli.define_help(values)
    cli.define_float("share", None, "", lower_bound=0, upper_bound=1, flag_values=values)
    assert cli.run("program", "", values, lambda: None, ["program", f"--share={text}"]) == 2
    assert message in capsys.readouterr().err
    assert cli.run("program", "", values, lambda: 0 if values.share == 0.5 else 1, ["program", "--share=0.5"]) == 0


def every_flags():
    """The flags of every entry point."""
    launched = [path.stem for path in sorted(Path(launch.__file__).parent.glob("*.py")) if path.stem != "__init__"]
    modules = [importlib.import_module(f"launch.{name}") for name in launched] + [sample, evaluate]
    found = [module.FLAGS for module in modules if hasattr(module, "FLAGS")]
    return [*found, prepare._flags(), convert._flags(), main.define_flags(), plan.define_flags()]


def test_every_flag_for_a_number_of_every_entry_point_refuses_nan():
    numbers = [values[name] for values in every_flags() for name in values if values[name].flag_type() == "float"]
    assert len(numbers) >= 13
    for flag in numbers:
        for text in ("nan", "inf", "-inf"):
            with pytest.raises(flags.IllegalFlagValueError, match=r"must be a finite number"):
                flag.parse(text)


def test_paths_know_the_home_folder(monkeypatch, tmp_path, capsys):
    """A shell leaves ~ as it is behind the = of --workdir=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.FlagValues()
    cli.define_help(values)
    cli.define_path("workdir", "", flag_values=values)
    seen = []
    for text in ("~/x", "~", "a/~/b", "gs://bucket/~"):
        assert cli.run("p", "", values, lambda: seen.append(values.workdir), ["p", f"--workdir={text}"]) == 0
    assert seen == [f"{tmp_path}/x", str(tmp_path), "a/~/b", "gs://bucket/~"]
    assert cli.run("p", "", values, lambda: None, ["p", "--workdir="]) == 2
    assert "it is empty; was it a variable of the shell that is not set?" in capsys.readouterr().err
    assert cli.run("p", "", values, lambda: None, ["p", "--workdir=~nobody-of-that-name/x"]) == 2
    assert "~nobody-of-that-name/x" in capsys.readouterr().err


def test_every_path_flag_of_every_entry_point_expands_it():
    names = {"out", "path", "prompts_file", "autoencoder", "vae", "font", "tokenizer", "json", "journal"}
    found = [values[name] for values in every_flags() for name in sorted(names & set(values))]
    local = (sample.FLAGS, evaluate.FLAGS, main.define_flags())  # those of launch/ lie in buckets
    found += [values["workdir"] for values in local]
    assert len(found) >= 15
    for flag in found:
        assert flag.parser.parse("~/x") == str(Path("~/x").expanduser()), flag.name


@pytest.mark.parametrize(
    ("message", "in_main", "in_sample", "in_convert"),
    [
        ("Set --config.mesh.{data,fsdp} so that", None, "Set --mesh so that", "Set --mesh so that"),
        ("Choose another --config.mesh, or", None, "Choose another --mesh, or", "Choose another --mesh, or"),
        ("--config.mesh.fsdp=0: must be", None, "fsdp of --mesh=0: must be", "fsdp of --mesh=0: must be"),
        ("--config.sample.steps=0: at", None, "--steps=0: at", "config key sample.steps=0: at"),
        (
            "name it with --config.text.path.",
            None,
            "name it with --text_encoder.",
            "name it with config key text.path.",
        ),
        ("--config.train.steps=3", None, "config key train.steps=3", "config key train.steps=3"),  # not its --steps
        ("no key at all, --step=3", None, None, None),
    ],
)
def test_messages_name_what_can_be_given(message, in_main, in_sample, in_convert):
    for values, expected in (
        (main.define_flags(), in_main),
        (sample.FLAGS, in_sample),
        (convert._flags(), in_convert),
    ):
        assert cli.in_own_flags(message, values) == (expected or message)


def test_a_mesh_that_does_not_fit_is_told_in_the_words_of_the_program(capsys, tmp_path):
    values = flags.FlagValues()
    cli.define_help(values)
    cli.define_mesh(values)

    def work():
        from ec_dit.core.mesh import resolve_shape

        resolve_shape([3, 1, 1, 1], 8)

    assert cli.run("convert", "", values, work, ["convert"]) == 2
    told = capsys.readouterr().err
    assert "Set --mesh so that their product is 8" in told and "--config" not in told


def test_a_config_and_published_weights_are_found_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("")
    assert overrides.locate("~/mine.py:arg") == (tmp_path / "mine.py", "arg")
    assert hub.local("~/mine.py") == tmp_path / "mine.py"
