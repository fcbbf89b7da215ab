"""The table of accelerators: names as JAX gives them, against the vendors' data sheets."""

import pytest

from ec_dit.core import hardware


@pytest.mark.parametrize(
    ("device_kind", "generation", "teraflops"),
    [
        ("TPU v4", "v4", 275),
        ("TPU v5", "v5p", 459),
        ("TPU v5p", "v5p", 459),
        ("TPU v5 lite", "v5e", 197),  # begins as v5p's name does
        ("TPU v5e", "v5e", 197),
        ("TPU v6 lite", "v6e", 918),
        ("TPU v6e", "v6e", 918),
        ("NVIDIA A100-SXM4-80GB", None, 312),
        ("NVIDIA H100 80GB HBM3", None, 989),
        ("NVIDIA H100 PCIe", None, 756),
        ("NVIDIA H200", None, 989),
        ("cpu", None, None),
        ("TPU v2", None, None),
    ],
)
def test_devices_by_name(device_kind, generation, teraflops):
    found = hardware.tpu(device_kind)
    assert found == (hardware.TPUS[generation] if generation else None)
    assert hardware.known_flops(device_kind) == (teraflops and teraflops * 1e12)


def test_only_tori_of_two_dimensions_have_squares():
    for name, tpu in hardware.TPUS.items():
        assert {shape.count("x") for shape in tpu.shapes} == {2 if tpu.cubes else 1}, name
