"""A wheel of the code that runs here, for the hosts of a slice: built from a checkout, or repacked from what is installed."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from ec_dit.core.errors import UserError

ROOT = Path(__file__).parents[1]
_PACKAGES = ("ec_dit", "launch", "configs")  # and what building needs beside them:
_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # what an installer leaves beside a wheel's own files


def make(folder: Path) -> Path:
    """Makes the wheel, and returns its file in `folder`.

    Raises:
        UserError: if it cannot be made.
    """
    return _built(folder) if (ROOT / "setup.py").is_file() else _repacked(folder)


def _built(folder: Path) -> Path:
    """From a checkout."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as copy:  # building leaves files in the sources
        sources = Path(copy)
        for name in _PACKAGES:
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in _FILES:
            shutil.copy(ROOT / name, sources / name)
        done = subprocess.run(
            [*build, f"--wheel-dir={folder}", str(sources)], capture_output=True, text=True, check=False
        )
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise UserError(f"the wheel cannot be built: {done.stderr.strip()[-500:]} (or give --code=git+https://...)")
    return wheels[0]


def _repacked(folder: Path) -> Path:
    """From an installed package: its files and metadata, with a list of digests made anew."""
    try:
        installed = metadata.distribution("ec-dit")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"{ROOT} holds neither a checkout nor an installed package; give --code=git+https://..."
        ) from error
    info = f"ec_dit-{installed.version}.dist-info"
    wheel = folder / f"ec_dit-{installed.version}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(installed.files or (), key=str):
            own = file.parts[0] in _PACKAGES or (file.parts[0] == info and file.name not in _NOTES)
            if not own or "__pycache__" in file.parts:
                continue
            content = Path(str(installed.locate_file(file))).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{file.as_posix()},sha256={digest},{len(content)}\n")
            archive.writestr(file.as_posix(), content)
        archive.writestr(f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]))
    if not record:
        raise UserError(f"the package in {ROOT} keeps no list of its files; give --code=git+https://...")
    return wheel
