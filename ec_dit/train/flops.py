"""What the devices could do: peak FLOP/s, the denominator of model FLOPs utilisation (MFU)."""

import time

import jax
import jax.numpy as jnp

# Dense bf16 FLOP/s of one JAX device, from the vendors' data sheets. A v4 or v5p chip is one device (megacore).
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> tuple[float, str]:
    """(FLOP/s of one device, where the figure comes from): the longest name in the table that fits, else a measurement."""
    kind = device.device_kind
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    if known:
        return PEAK_FLOPS[max(known, key=len)], f"data sheet, {kind}"
    # Emulated CPU devices share the cores: each gets its part of what one large product reaches.
    return _measured_matmul() / jax.local_device_count(), f"measured float32 matmul, {kind}"


def _measured_matmul(size: int = 1536, repeats: int = 5) -> float:
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
