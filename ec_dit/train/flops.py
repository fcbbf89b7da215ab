"""The denominator of model FLOPs utilisation (MFU): what a device could do, known or measured."""

import functools
import time

import jax
import jax.numpy as jnp

from ec_dit.core import hardware


def peak_flops(device: jax.Device) -> tuple[float, str]:
    """Gives (FLOP/s of one device, where the figure comes from): of core/hardware.py, or measured where that has none."""
    kind = device.device_kind
    if known := hardware.known_flops(kind):
        return known, f"data sheet, {kind}"
    # Emulated CPU devices share the cores: each gets its part of what one large product reaches.
    size = 1024 if device.platform == "cpu" else 4096  # smaller ones leave a GPU idle
    return _measured_matmul(size) / jax.local_device_count(), f"measured float32 matmul, {kind}"


@functools.cache
def _measured_matmul(size: int, repeats: int = 3) -> float:
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
