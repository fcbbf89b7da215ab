"""What an entry point says that stops over a mistake."""


def refusal(capsys, code, name):
    """The one message of an entry point that stopped over a mistake."""
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert (
        errors.count(f"{name}:") == 1 and errors.rpartition(f"{name}:")[0].strip() == "" and "Traceback" not in errors
    )
    return errors
