"""The mesh covers exactly the devices there are, or says which sizes would."""

import jax
import pytest
from jax.sharding import AxisType

from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, make_mesh, resolve_shape


@pytest.mark.parametrize(
    ("shape", "devices", "expected"),
    [
        ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
        ((-1, 1, 1, 1), 8, (8, 1, 1, 1)),
        ((2, -1, 2, 1), 8, (2, 2, 2, 1)),
        ((1, 1, 8, -1), 8, (1, 1, 8, 1)),
        ((1, 2, 2, 2), 8, (1, 2, 2, 2)),
    ],
)
def test_resolve_shape(shape, devices, expected):
    assert resolve_shape(shape, devices) == expected


@pytest.mark.parametrize(
    ("shape", "devices", "words"),
    [
        ((3, 1, 1, 1), 8, ("data=3", "3 devices", "8")),
        ((3, -1, 1, 1), 8, ("data=3", "fsdp=-1", "8")),
        ((-1, -1, 1, 1), 8, ("data=-1", "fsdp=-1", "at most one")),
        ((0, 1, 1, 1), 8, ("data=0", ">= 1")),
        ((2, 2, 2, 2), 8, ("tensor=2", "16 devices", "8")),
    ],
)
def test_impossible_shapes_name_their_numbers(shape, devices, words):
    with pytest.raises(UserError) as error:
        resolve_shape(shape, devices)
    assert all(word in str(error.value) for word in words), error.value


def test_make_mesh():
    mesh = make_mesh((2, 1, -1, 2))
    assert mesh.axis_names == MESH_AXES
    assert tuple(mesh.shape.values()) == (2, 1, 2, 2)
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())


def test_make_mesh_of_some_devices():
    two = jax.devices()[2:4]
    assert set(make_mesh((1, 2, 1, 1), two).devices.flat) == set(two)
