"""Plans: python -m ec_dit.plan --config=configs/m_64e.py [--topology=v5p:8x8x8] [--what=train|sample] [--json=F].

Compiles the config's real step for a topology, without touching a device, and prints what it would need there: memory by
kind, FLOPs, collectives, and the time that compute, memory and interconnect take. Exit code 0 if it fits, 1 if not.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from ec_dit import checks, cli, overrides
from ec_dit.core.errors import UserError

DOES_NOT_FIT = 1


def define_flags() -> flags.FlagValues:
    """The flags of one call, apart from the config's keys."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "Config file, FILE.py or FILE.py:smoke.", flag_values=values)
    flags.DEFINE_string(
        "topology", None, "Such as v5p:8x8x8, or cpu:8; the config's own by default.", flag_values=values
    )
    flags.DEFINE_enum("what", "train", ["train", "sample"], "The step to plan.", flag_values=values)
    cli.define_path("json", "File to write the figures to.", flag_values=values)
    cli.define_help(values)
    return values


def prepare_environment(topology: str) -> None:
    """Before jax is imported: its own devices are CPUs, emulated as many as asked, and the TPU's compiler looks for none."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)  # or it complains of a TPU that it does not find
    name, _, count = topology.partition(":")
    if name == "cpu" and count.isdigit():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    import jax

    jax.config.update("jax_platforms", "cpu")  # a config file may have imported it already


def plan(run_config: ConfigDict, topology: str | None, what: str, json_path: str | None) -> int:
    """Compiles, prints and writes; returns the exit code."""
    topology = topology or run_config.topology
    if not topology:
        raise UserError("--topology=... is needed, such as v5p:8x8x8: this config names none")
    if run_config.text.encoder == "cached":
        run_config.data.source = "synthetic"  # shapes are all that counts
    checks.validate(run_config)
    prepare_environment(topology)

    from ec_dit.planning import compile as compiler
    from ec_dit.planning import report

    cli.say(f"compiling {run_config.name} for {topology} ...")
    try:
        found = report.make(run_config, topology, what)
    except compiler.NoCompiler as error:
        cli.say(report.by_formula(run_config, topology, what))
        raise UserError(f"{error}; above is what formulas tell without it") from error
    except compiler.DoesNotFit as error:
        size = "" if error.needed is None else f": it needs at least {error.needed / 1e9:.1f} GB on a chip"
        cli.say(f"{run_config.name} on {topology}: DOES NOT FIT{size}\n{report.advice(what, activations=True)}")
        if json_path:
            Path(json_path).write_text(
                json.dumps({"fits": False, "hbm_bytes_per_chip": error.needed}) + "\n", encoding="utf-8"
            )
        return DOES_NOT_FIT
    cli.say(found.text())
    if json_path:
        Path(json_path).write_text(found.json() + "\n", encoding="utf-8")
    return 0 if found.fits else DOES_NOT_FIT


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    values, (own, changes) = define_flags(), overrides.split(argv)

    def work() -> int:
        return plan(overrides.read(values.config, changes), values.topology, values.what, values.json)

    return cli.run("plan", __doc__ or "", values, work, own)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
