"""Flags that the commands share, and what is made of them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from absl import flags
from ml_collections import ConfigDict

from ec_dit import cli, main
from ec_dit.config import checks, overrides
from ec_dit.core import paths
from ec_dit.core.errors import UserError
from launch import gcloud, job, slices


def define_tpu(values: flags.FlagValues) -> None:
    """--name, --config, --project, --zone, --internal_ips, --dry_run, --help."""
    flags.DEFINE_string(
        "name", None, "Of the queued resource and its node; by default from the config.", flag_values=values
    )
    cli.define_config(values)
    flags.DEFINE_string("project", None, "GCP project; default: CLOUDSDK_CORE_PROJECT.", flag_values=values)
    flags.DEFINE_string("zone", None, "GCP zone; default: CLOUDSDK_COMPUTE_ZONE.", flag_values=values)
    flags.DEFINE_bool(
        "internal_ips", False, "The hosts have internal addresses only, and are reached by these.", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "Print the gcloud commands and run none.", flag_values=values)
    cli.define_help(values)


def define_slice(values: flags.FlagValues) -> None:
    """What creating needs beside `define_tpu`."""
    flags.DEFINE_enum("mode", "spot", get_args(gcloud.Mode), "How the slice is paid for.", flag_values=values)
    flags.DEFINE_string("topology", None, "Such as v5e:4x4; the config's own by default.", flag_values=values)
    flags.DEFINE_string("service_account", None, "Of the hosts; it needs access to the bucket.", flag_values=values)
    flags.DEFINE_string("network", None, "VPC network.", flag_values=values)
    flags.DEFINE_string("subnetwork", None, "VPC subnetwork.", flag_values=values)
    flags.DEFINE_multi_string("label", [], "KEY=VALUE, of the node; repeat for more.", flag_values=values)


def define_job(values: flags.FlagValues) -> None:
    """What running needs beside `define_tpu`."""
    flags.DEFINE_string("workdir", None, "Folder of the run, gs://BUCKET/DIR.", flag_values=values)
    flags.DEFINE_string(
        "code", "wheel", "wheel: the code that runs here; or git+https://HOST/REPOSITORY@REVISION.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "env",
        [],
        "NAME=VALUE, or NAME to take its value from here: set on the hosts. Not printed, but kept beside the run in its bucket.",
        flag_values=values,
    )


def split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The command line up to `--`, and what follows it: arguments for ec_dit.main."""
    if "--" not in argv:
        return list(argv), ()
    at = list(argv).index("--")
    return list(argv[:at]), tuple(argv[at + 1 :])


def load_config(values: flags.FlagValues) -> tuple[ConfigDict, Path, str]:
    """(config, its file, its argument) of --config.

    Raises:
        UserError: without one, or if it does not load.
    """
    if not values.config:
        raise UserError("--config=FILE is needed, or a name of the package's own, for example --config=m_64e")
    path, argument = overrides.locate(values.config)
    return overrides.load(path, argument), path, argument


def make_tpu(values: flags.FlagValues) -> gcloud.Tpu:
    """The queued resource that --name, --project and --zone name.

    Raises:
        UserError: if one of them is missing or no such name.
    """
    name = values.name or (load_config(values)[0].name.replace("_", "-") if values.config else None)
    project = values.project or os.environ.get("CLOUDSDK_CORE_PROJECT")
    zone = values.zone or os.environ.get("CLOUDSDK_COMPUTE_ZONE")
    needed = {"--name (or --config)": name, "--project (or CLOUDSDK_CORE_PROJECT)": project}
    needed["--zone (or CLOUDSDK_COMPUTE_ZONE)"] = zone
    if missing := [flag for flag, value in needed.items() if not value]:
        raise UserError(f"{', '.join(missing)} is needed; see --help")
    assert name and project and zone
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise UserError(f"--name={name}: lower-case letters, digits and dashes, beginning with a letter, 63 at most.")
    return gcloud.Tpu(name, project, zone, values.internal_ips)


def make_slice(values: flags.FlagValues) -> slices.Slice:
    """The slice that the config, or --topology, asks for.

    Raises:
        UserError: if neither names one that Google Cloud offers.
    """
    topology = values.topology or load_config(values)[0].topology
    if not topology:
        raise UserError(f"{values.config} names no topology: give --topology, such as v5e:4x4.")
    return slices.find(topology)


def creation_flags(values: flags.FlagValues) -> list[str]:
    """Arguments of `gcloud ... queued-resources create` that flags ask for."""
    names = ("service_account", "network", "subnetwork")
    extra = [f"--{name.replace('_', '-')}={values[name].value}" for name in names if values[name].value]
    if values.internal_ips:
        extra.append("--internal-ips")
    return extra + ([f"--labels={','.join(values.label)}"] if values.label else [])


def make_job(values: flags.FlagValues, arguments: tuple[str, ...]) -> job.Job:
    """The job that --config, --workdir, --env, --code and what follows `--` describe.

    The whole command line of ec_dit.main is read and its config checked here, before any chip is paid for.

    Raises:
        UserError: for what would fail on the hosts.
    """
    _, path, argument = load_config(values)
    if reserved := [a for a in arguments if a.split("=")[0].lstrip("-") in ("config", "workdir")]:
        raise UserError(f"{reserved[0]} stands behind `--`: give it before.")
    if not values.workdir:
        raise UserError("--workdir=gs://BUCKET/DIR is needed: checkpoints outlive the slice there")
    own, changes = overrides.split(arguments)
    if extra := main.define_flags()(["ec_dit.main", *own])[1:]:
        raise UserError(f"unexpected argument {extra[0]!r} behind `--`; options are written --name=value")
    config = overrides.read(values.config, changes)
    checks.check_data_is_named(config)
    if (source := config.train.init_from) and not paths.is_remote(source):
        raise UserError(
            f"--config.train.init_from={source} lies on this machine, which the hosts do not see: copy it to a bucket."
        )
    env = job.collect_env(values.env, os.environ)
    job.check(values.workdir, env, values.code)
    return job.Job(path, argument, arguments, values.workdir, env, values.code)
