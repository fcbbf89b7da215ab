"""Compiled programs are kept where they are looked for, the least used ones go, and nothing hinges on them."""

import os
import subprocess
import sys
import time

import pytest
from absl import flags

from ec_dit import cli
from ec_dit.core import processes, programs

TWICE = """
from ec_dit import cli
from ec_dit.core import processes, programs
programs.keep()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((8, 8))).block_until_ready()
print("compilation_cache/cache_hits" in " ".join(hits))
"""


def ran(home, **more):
    environment = {key: value for key, value in os.environ.items() if "COMPILATION_CACHE" not in key}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | more
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def kept(home):
    return [path for path in home.rglob("*-cache") if path.is_file()]


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    assert ran(tmp_path) == ["False"]
    assert kept(tmp_path / "ec_dit" / "programs")
    assert ran(tmp_path) == ["True"]


def test_the_environment_decides(tmp_path):
    ran(tmp_path / "a", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert kept(tmp_path / "mine") and not kept(tmp_path / "a")
    ran(tmp_path / "b", JAX_ENABLE_COMPILATION_CACHE="false")
    assert not kept(tmp_path / "b")


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_home_that_cannot_be_written_is_no_mistake(tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    assert ran(tmp_path / "home") == ["False"]


def test_the_least_used_programs_go_first(tmp_path):
    for age, name in enumerate(["new", "read", "old", "older"]):
        program, used = tmp_path / f"{name}-cache", tmp_path / f"{name}-atime"
        program.write_bytes(b"p" * 100)
        used.write_bytes(b"t" * 8)
        for path in (program, used):
            os.utime(path, (time.time() - 1000 * age,) * 2)
    os.utime(tmp_path / "older-atime", None)  # made long ago, and used now
    other = tmp_path / "notes.txt"
    other.write_text("not a program")
    programs.make_room(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {
        "new-cache",
        "new-atime",
        "older-cache",
        "older-atime",
        "notes.txt",
    }


@pytest.mark.parametrize("count", [1, 2])
def test_only_a_process_alone_keeps_them(count, monkeypatch):
    """Of two, one that finds its program would wait for one that compiles it, and give up."""
    kept_by = []
    monkeypatch.setattr(programs, "keep", lambda: kept_by.append(count))
    monkeypatch.setattr(processes, "count", lambda: count)
    values = flags.FlagValues()
    cli.define_help(values)
    assert cli.run("test", "", values, lambda: 0, ["test"]) == 0
    assert kept_by == [1] * (count == 1)
