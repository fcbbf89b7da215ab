"""Where a device's peak comes from: the table of accelerators, or a measurement that emulated devices share."""

from types import SimpleNamespace

import jax
import pytest

from ec_dit.train import flops


def test_known_devices_are_looked_up(monkeypatch):
    monkeypatch.setattr(flops, "_measured_matmul", None)
    assert flops.peak_flops(SimpleNamespace(device_kind="TPU v5 lite")) == (197e12, "data sheet, TPU v5 lite")


def test_emulated_devices_share_what_is_measured(monkeypatch):
    monkeypatch.setattr(flops, "_measured_matmul", lambda size: 8e10)
    (device, *_) = jax.local_devices()
    assert flops.peak_flops(device) == (pytest.approx(8e10 / jax.local_device_count()), "measured float32 matmul, cpu")


def test_a_measurement_takes_the_fastest_run(monkeypatch):
    # Two products of 4 x 4: 2 x 64 operations in 4 seconds, then in 1.
    clock = iter([0.0, 4.0, 10.0, 11.0])
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(clock))
    assert flops._measured_matmul(size=4, repeats=2) == 128
