"""How XLA compiles for the tests, which compile much and run little. Imports nothing of jax, which reads flags at its start."""

from importlib.metadata import version

# The older emitters take half the time; a jaxlib without them ends where it finds their flag.
_OLDER = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""


def flags(devices):
    """A value of XLA_FLAGS for so many emulated devices."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0{_OLDER}"
