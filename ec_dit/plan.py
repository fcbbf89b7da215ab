"""Plans: python -m ec_dit.plan --config=configs/m_64e.py [--topology=v5p:8x8x8] [--what=train|sample] [--json=F] [--notry].

Compiles the config's real step for a topology, without touching a device, and prints what it would need there: memory by
kind, FLOPs, collectives, and the time that compute, memory and interconnect take. Where it does not fit, settings that need
less are compiled too, until one does, unless --notry is given. Exit code 0 if it fits, 1 if not.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from absl import flags
from etils import epath

from ec_dit import cli
from ec_dit.config import RunConfig, checks, overrides
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import paths, settings
from ec_dit.core.errors import UserError
from ec_dit.core.topology import CPU, Topology, parse

DOES_NOT_FIT = 1
_TELL_SECONDS = 30  # between signs of life while something is compiled


def define_flags() -> flags.FlagValues:
    """The flags of one call, apart from the config's keys."""
    values = flags.FlagValues()
    cli.define_config(values)
    flags.DEFINE_string(
        "topology", None, "Such as v5p:8x8x8, or cpu:8; the config's own by default.", flag_values=values
    )
    flags.DEFINE_enum("what", "train", ["train", "sample"], "The step to plan.", flag_values=values)
    flags.DEFINE_bool(
        "try", True, "Where a step does not fit, look for settings with which it does.", flag_values=values
    )
    cli.define_path("json", "File to write the figures to.", flag_values=values)
    cli.define_help(values)
    return values


def prepare_environment(topology: Topology) -> None:
    """Before jax is imported: its own devices are CPUs, emulated as many as asked, and the TPU's compiler looks for none."""
    # A program that was kept does not say what memory it took.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    if topology.name != CPU:  # whatever TPU this machine is said to have: it complains of one that it does not find
        os.environ |= {"TPU_ACCELERATOR_TYPE": topology.accelerator_type, "TPU_WORKER_HOSTNAMES": "localhost"}
    else:
        count = f"--xla_force_host_platform_device_count={topology.chips}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax

    jax.config.update("jax_platforms", "cpu")  # a config file may have imported it already


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Says what is compiled, and every so often that it still is."""
    start, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(_TELL_SECONDS):
            cli.say(f"  still compiling, {time.monotonic() - start:.0f} s")

    cli.say(f"compiling {what}; a minute or two on idle cores, more on few or busy ones ...")
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _figures(path: str) -> epath.Path:
    """The file of --json, before minutes are spent on what goes into it.

    Raises:
        UserError: it could not be written.
    """
    file = paths.at(path)
    if file.is_dir():
        raise UserError(f"--json={path}: {file} is a folder; give a file.")
    if not paths.is_remote(file):
        if not file.parent.is_dir():
            raise UserError(f"--json={path}: there is no folder {file.parent}.")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise UserError(f"--json={path}: it may not be written by this user.")
    return file


def plan(run_config: RunConfig, topology: str | None, what: str, json_path: str | None, *, tries: bool = True) -> int:
    """Compiles, prints and writes; returns the exit code."""
    topology = topology or run_config.topology
    if not topology:
        raise UserError("--topology=... is needed, such as v5p:8x8x8: this config names none")
    figures = _figures(json_path) if json_path else None
    wanted = parse(topology)
    if run_config.text.encoder == "cached":
        run_config = settings.changed(run_config, {"data.source": SYNTHETIC})  # shapes are all that counts
    checks.validate(run_config)
    prepare_environment(wanted)

    from ec_dit.planning import advice, report
    from ec_dit.planning import compile as compiler

    place = f"{run_config.name} for {wanted}"
    found: report.Report | None = None
    try:
        with _told(place):
            found = report.make(run_config, topology, what)
        need = advice.Need(found.hbm_bytes, found.memory)
    except compiler.NoCompiler as error:
        cli.say(report.by_formula(run_config, topology, what))
        raise UserError(f"{error}; above is what formulas tell without it") from error
    except compiler.DoesNotFit as error:
        size = "" if error.needed is None else f": it needs at least {error.needed / 1e9:.1f} GB on a chip"
        cli.say(f"{place}: DOES NOT FIT{size}")
        need = advice.Need(error.needed, error.held)
    if found is not None:
        cli.say(found.text())
    if figures is not None:
        text = found.json() if found else json.dumps({"fits": False, "hbm_bytes_per_chip": need.total})
        figures.write_text(text + "\n")
    if found is not None and found.fits:
        return 0
    cli.say(f"\n{advice.advise(run_config, topology, what, need, _told, tries=tries)}")
    return DOES_NOT_FIT


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # what a compiler fails of, it raises; the rest is of no use here
    cli.quiet()
    values, (own, changes) = define_flags(), overrides.split(argv)

    def work() -> int:
        config = overrides.read(values.config, changes)
        given = {key for key, _ in changes}
        if any(key.startswith("mesh.") for key in given) and "sample.layout" not in given:
            config = settings.changed(config, {"sample.layout": "mesh"})  # whoever names a mesh means it
        return plan(
            config,
            values.topology,
            values.what,
            values.json,
            tries=bool(values["try"].value),
        )

    return cli.run("plan", __doc__ or "", values, work, own, more_help=overrides.keys_help)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
