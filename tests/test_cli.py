"""What every entry point does around its work."""

import errno

import pytest
from absl import flags

from ec_dit import cli
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
