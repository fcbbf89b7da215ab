"""The wheel that hosts install, where the launcher itself was installed from one. From a checkout: test_commands.py."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

from ec_dit.core.errors import UserError
from launch import wheel

INFO = "ec_dit-1.2.dist-info"
OWN = {
    "ec_dit/__init__.py": b"",
    "ec_dit/configs/m.py": "name = 'é'\n".encode(),
    "launch/host.sh": b"#!/bin/sh\n",
    f"{INFO}/METADATA": b"Metadata-Version: 2.4\nName: ec-dit\nVersion: 1.2\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/entry_points.txt": b"[console_scripts]\nec-dit = ec_dit:main\n",
}
OTHERS = {f"{INFO}/INSTALLER": b"pip\n", f"{INFO}/direct_url.json": b"{}", "ec_dit/__pycache__/__init__.pyc": b"x"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What pip leaves: files, and a list of them that also names a script outside and itself."""
    site = tmp_path / "site"
    for name, content in (OWN | OTHERS).items():
        file = site / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    listed = "".join(f"{name},,\n" for name in ["../bin/ec-dit", *OWN, *OTHERS, f"{INFO}/RECORD"])
    (site / INFO / "RECORD").write_text(listed)
    monkeypatch.setattr(wheel, "ROOT", site)
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.Distribution.at(site / INFO))
    return site


def test_an_installed_package_becomes_a_wheel_again(installed, tmp_path):
    made = wheel.make(tmp_path)
    assert made == tmp_path / "ec_dit-1.2-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = contents.pop(f"{INFO}/RECORD").decode().splitlines()
    assert contents == OWN
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode() for name, data in OWN.items()}
    wanted = [f"{name},sha256={digests[name].rstrip('=')},{len(data)}" for name, data in OWN.items()]
    assert sorted(record) == sorted([*wanted, f"{INFO}/RECORD,,"])


def test_pip_installs_it(installed, tmp_path):
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={target}"]
    subprocess.run([*install, str(wheel.make(tmp_path))], check=True, capture_output=True)
    for name in ("ec_dit/configs/m.py", "launch/host.sh"):
        assert (target / name).read_bytes() == OWN[name]
    assert "ec_dit:main" in metadata.Distribution.at(target / INFO).read_text("entry_points.txt")


def test_code_without_a_list_of_its_files_says_what_to_do(installed, tmp_path, monkeypatch):
    (installed / INFO / "RECORD").unlink()
    with pytest.raises(UserError, match=r"keeps no list of its files; give --code=git\+https"):
        wheel.make(tmp_path)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"neither a checkout nor an installed package; give --code=git\+https"):
        wheel.make(tmp_path)
