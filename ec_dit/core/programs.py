"""Programs that were compiled once: JAX keeps them in a folder, so that the next start does not compile them again.

The folder is ~/.cache/ec_dit/programs, or below XDG_CACHE_HOME; JAX_COMPILATION_CACHE_DIR names another, in a bucket too, and
JAX_ENABLE_COMPILATION_CACHE=false keeps none.
"""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

_MOST_BYTES = 8 * 2**30  # above which the programs that were not used for longest go
_FOLDER, _SWITCH = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
_PROGRAM, _USED = "-cache", "-atime"  # how JAX ends the names of a program, and of what says when it was used


def keep() -> None:
    """Makes JAX keep what it compiles, unless the environment says where, or that it should not."""
    if _FOLDER in os.environ or os.environ.get(_SWITCH, "true").lower() in ("false", "0"):
        return
    folder = _home() / "ec_dit" / "programs" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is missing or read-only: programs are compiled every time
        return
    if not os.access(folder, os.W_OK):
        return
    make_room(folder, _MOST_BYTES)
    os.environ[_FOLDER] = str(folder)
    if "jax" in sys.modules:  # which has read the environment by now
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))


def make_room(folder: Path, most_bytes: int) -> None:
    """Removes programs, the one that was not used for longest first, until so many bytes are left at most."""
    found = []
    for program in folder.glob(f"*{_PROGRAM}"):
        used = program.with_name(program.name.removesuffix(_PROGRAM) + _USED)
        with contextlib.suppress(OSError):  # another process removed it
            time = max(path.stat().st_mtime for path in (program, used) if path.exists())
            found.append((time, program.stat().st_size, program, used))
    left = sum(size for _, size, _, _ in found)
    for _, size, program, used in sorted(found):
        if left <= most_bytes:
            break
        left -= size
        with contextlib.suppress(OSError):
            program.unlink()
            used.unlink()


def _home() -> Path:
    """The folder for what may be made again."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if Path(given).is_absolute() else Path("~/.cache").expanduser()


def _processor() -> str:
    """A name for what this machine's processor can do: a program for another may end in an illegal instruction."""
    features = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(features.encode()).hexdigest()[:12]
