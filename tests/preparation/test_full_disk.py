"""A disk that takes no more: one message, the exit code of what may be tried again, and the same result with space again."""

import contextlib
import errno
import os
import resource

import numpy as np
import pytest
from PIL import Image

from ec_dit import prepare
from ec_dit.core import processes
from ec_dit.data import reading
from tests.sets import hashes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noise, which does not compress, in ten files of some 5 kB."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise of number {number}")
    return folder


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond that, as with a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_with_space_again_the_same_command_goes_on_to_the_same_result(tmp_path, pictures, capsys):
    """Limits that strike at the records, the notes of units, the tokenizer, the descriptions and the report."""
    command = ["prepare", "--source=folder", f"--path={pictures}", "--vocab_size=60", "--validation_share=0"]
    assert prepare.main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    sizes = sorted({path.stat().st_size for path in (tmp_path / "whole").iterdir()})
    limits = {0, 1, 100, *(size - 1 for size in sizes if size)}
    for limit in sorted(limits):
        out = tmp_path / f"set{limit}"
        capsys.readouterr()
        with largest_file(limit):
            assert prepare.main([*command, f"--out={out}"]) == processes.STOPPED
        told = capsys.readouterr().err.splitlines()[-1]
        assert "File too large" in told and "Make room there, or raise the limit" in told
        assert not out.exists()
        assert prepare.main([*command, f"--out={out}"]) == 0
        assert hashes(out) == hashes(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT])
def test_errors_of_the_record_library_carry_the_systems_number(code):
    text = f"write() failed: {os.strerror(code)}; writing /x; at byte 9; Failed to close chunk_writer"
    with pytest.raises(OSError, match=os.strerror(code)) as caught, reading.system_errors("/x"):
        raise RuntimeError(text)
    assert caught.value.errno == code and caught.value.filename == "/x"
    with pytest.raises(RuntimeError, match=r"chunk header hash mismatch"), reading.system_errors("/x"):
        raise RuntimeError("Corrupted Riegeli/records file: chunk header hash mismatch")
