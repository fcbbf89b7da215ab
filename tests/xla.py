"""How XLA compiles for the tests, which compile much and run little. Imports nothing: jax reads the flags when it starts."""


def flags(devices):
    """A value of XLA_FLAGS for so many emulated devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return f"{count} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
