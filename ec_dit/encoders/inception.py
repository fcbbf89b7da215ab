"""The Inception-v3 of FID: TensorFlow's graph of 2015-12-05, as pytorch-fid publishes its weights. 2,048 numbers of a picture.

It is no ImageNet classifier of torchvision or timm: averages leave the padding out, and the last block pools by maximum. Of its
classes nothing is computed; their tensors are known by name, since files hold them.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import CONV, SAME
from ec_dit.encoders import weights
from ec_dit.nn import param

SIZE = 299  # rows and columns of its pictures
WIDTH = 2048  # of its features
_COUNTED = "num_batches_tracked"  # by torch's batch norms; nothing depends on it
IGNORED = ("fc.", _COUNTED)
_CLASSES = 1008  # one of ImageNet has 1,000
_EPS = 1e-3  # of its batch norms
_CONVERT = (
    'Write it once as safetensors: python -c "import sys, torch, safetensors.torch as s; '
    's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" FILE.pth FILE.safetensors'
)


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, its batch norm, and ReLU; `kernel` is (rows, columns).

    Padded, it keeps rows and columns; where it is not, it has no padding at all.
    """

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class Pool:
    """3 x 3 pooling, by maximum or by the mean without padding."""

    by_mean: bool = False
    stride: int = 1


@dataclass(frozen=True)
class Split:
    """Paths of the same input, whose outputs lie beside each other."""

    paths: tuple[tuple["Layer", ...], ...]


Layer = Conv | Pool | Split
_HALVE = Pool(stride=2)


def _convs(name: str, widths: Sequence[int], kernels: Sequence[tuple[int, int]]) -> tuple[Conv, ...]:
    """NAME_1, NAME_2, ..."""
    rows = zip(widths, kernels, strict=True)
    return tuple(Conv(f"{name}_{i}", width, kernel) for i, (width, kernel) in enumerate(rows, 1))


def _a(pooled: int) -> Split:
    """35 x 35 pictures."""
    five = _convs("branch5x5", (48, 64), ((1, 1), (5, 5)))
    three = _convs("branch3x3dbl", (64, 96, 96), ((1, 1), (3, 3), (3, 3)))
    return Split(((Conv("branch1x1", 64),), five, three, (Pool(by_mean=True), Conv("branch_pool", pooled))))


def _b() -> Split:
    """35 x 35 to 17 x 17."""
    double = _convs("branch3x3dbl", (64, 96), ((1, 1), (3, 3)))
    last = Conv("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False)
    return Split(((Conv("branch3x3", 384, (3, 3), stride=2, padded=False),), (*double, last), (_HALVE,)))


def _c(inner: int) -> Split:
    """17 x 17 pictures, in rows and columns of seven."""
    row, column, one = (1, 7), (7, 1), (1, 1)
    seven = _convs("branch7x7", (inner, inner, 192), (one, row, column))
    double = _convs("branch7x7dbl", (inner, inner, inner, inner, 192), (one, column, row, column, row))
    return Split(((Conv("branch1x1", 192),), seven, double, (Pool(by_mean=True), Conv("branch_pool", 192))))


def _d() -> Split:
    """17 x 17 to 8 x 8."""
    three = (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), stride=2, padded=False))
    seven = _convs("branch7x7x3", (192, 192, 192), ((1, 1), (1, 7), (7, 1)))
    last = Conv("branch7x7x3_4", 192, (3, 3), stride=2, padded=False)
    return Split((three, (*seven, last), (_HALVE,)))


def _e(*, by_mean: bool) -> Split:
    """8 x 8 pictures."""

    def both(name: str) -> Split:
        return Split(((Conv(f"{name}a", 384, (1, 3)),), (Conv(f"{name}b", 384, (3, 1)),)))

    three = (Conv("branch3x3_1", 384), both("branch3x3_2"))
    double: tuple[Layer, ...] = (*_convs("branch3x3dbl", (448, 384), ((1, 1), (3, 3))), both("branch3x3dbl_3"))
    return Split(((Conv("branch1x1", 320),), three, double, (Pool(by_mean), Conv("branch_pool", 192))))


# Name of each part -> what it does. torch's module names, "" where there is none.
_PARTS: tuple[tuple[str, Layer], ...] = (
    ("", Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False)),
    ("", Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False)),
    ("", Conv("Conv2d_2b_3x3", 64, (3, 3))),
    ("", _HALVE),
    ("", Conv("Conv2d_3b_1x1", 80)),
    ("", Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False)),
    ("", _HALVE),
    *((f"Mixed_5{part}.", _a(pooled)) for part, pooled in (("b", 32), ("c", 64), ("d", 64))),
    ("Mixed_6a.", _b()),
    *((f"Mixed_6{part}.", _c(inner)) for part, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192))),
    ("Mixed_7a.", _d()),
    ("Mixed_7b.", _e(by_mean=True)),
    ("Mixed_7c.", _e(by_mean=False)),
)


class BasicConv(nnx.Module):
    """A `Conv` of `width_in` channels."""

    def __init__(self, layer: Conv, width_in: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer, self.dtype = layer, dtype
        shape = (*layer.kernel, width_in, layer.width)
        self.w_YXID = param.matrix(rngs, shape, (None,) * 4, "iiio")
        self.scale_D, self.shift_D, self.mean_D, self.variance_D = (
            param.table(jnp.full(layer.width, value), (None,)) for value in (1.0, 0.0, 0.0, 1.0)
        )

    def __call__(self, x_BYXI: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        x_BYXD = jax.lax.conv_general_dilated(
            x_BYXI.astype(self.dtype),
            param.gather(self.w_YXID, self.dtype),
            window_strides=(self.layer.stride,) * 2,
            padding="SAME" if self.layer.padded else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        scale_D, shift_D, mean_D, variance_D = (
            param.gather(part) for part in (self.scale_D, self.shift_D, self.mean_D, self.variance_D)
        )
        factor_D = scale_D / jnp.sqrt(variance_D + _EPS)
        return jax.nn.relu(x_BYXD * factor_D + (shift_D - mean_D * factor_D)).astype(self.dtype)


def _pooled(pool: Pool, x_BYXD: jax.Array) -> jax.Array:
    """Pooled 3 x 3: with a stride without padding, else keeping rows and columns."""
    window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
    padding = "VALID" if pool.stride > 1 else "SAME"
    if not pool.by_mean:
        return jax.lax.reduce_window(x_BYXD, -jnp.inf, jax.lax.max, window, strides, padding)
    total_BYXD = jax.lax.reduce_window(x_BYXD, 0.0, jax.lax.add, window, strides, padding)
    ones_BYXD = jnp.ones((1, *x_BYXD.shape[1:3], 1), x_BYXD.dtype)
    return total_BYXD / jax.lax.reduce_window(ones_BYXD, 0.0, jax.lax.add, window, strides, padding)


class Inception(nnx.Module):
    """Pictures (B, 299, 299, 3) in [-1, 1] -> features (B, 2048), float32."""

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.convs: nnx.Dict[BasicConv] = nnx.Dict()
        width = 3
        for start, layer in _PARTS:
            width = self._add(start, layer, width, rngs)

    def _add(self, start: str, layer: Layer, width: int, rngs: nnx.Rngs) -> int:
        """Makes the convolutions of a layer whose input has `width` channels; the channels of its output."""
        if isinstance(layer, Conv):
            self.convs[_ours(start + layer.name)] = BasicConv(layer, width, dtype=self.dtype, rngs=rngs)
            return layer.width
        if isinstance(layer, Pool):
            return width
        widths = 0
        for path in layer.paths:
            at = width
            for each in path:
                at = self._add(start, each, at, rngs)
            widths += at
        return widths

    def __call__(self, image_BYXZ: jax.Array) -> jax.Array:
        """Computes the features: the mean over rows and columns of the last layer's numbers."""
        pictures, features = ("batch", None, None, None), ("batch", None)
        run = param.per_device(self, Inception._forward, (pictures,), features, name="pictures of the batch")
        return run(image_BYXZ)

    def _forward(self, image_BYXZ: jax.Array) -> jax.Array:
        """The pictures of one device."""
        x_BYXD = image_BYXZ
        for start, layer in _PARTS:
            x_BYXD = self._run(start, layer, x_BYXD)
        return x_BYXD.astype(jnp.float32).mean((1, 2))

    def _run(self, start: str, layer: Layer, x_BYXD: jax.Array) -> jax.Array:
        if isinstance(layer, Conv):
            return self.convs[_ours(start + layer.name)](x_BYXD)
        if isinstance(layer, Pool):
            return _pooled(layer, x_BYXD)
        outputs = []
        for path in layer.paths:
            out_BYXD = x_BYXD
            for each in path:
                out_BYXD = self._run(start, each, out_BYXD)
            outputs.append(out_BYXD)
        return jnp.concatenate(outputs, axis=-1)


def _ours(name: str) -> str:
    """A module's name with us; theirs has dots."""
    return name.replace(".", "_")


def _names(start: str, layer: Layer) -> Iterator[str]:
    """Yields their names of the convolutions of a layer."""
    if isinstance(layer, Conv):
        yield start + layer.name
    elif isinstance(layer, Split):
        for each in itertools.chain.from_iterable(layer.paths):
            yield from _names(start, each)


def entries(names: Iterable[str]) -> name_map.Table:
    """Tells which tensors of pytorch-fid's file hold the parameters `names`."""
    plain: dict[str, tuple[str, name_map.Way]] = {}
    for start, layer in _PARTS:
        for name in _names(start, layer):
            ours = f"convs/{_ours(name)}/"
            plain |= {
                f"{ours}w_YXID": (f"{name}.conv.weight", CONV),
                f"{ours}scale_D": (f"{name}.bn.weight", SAME),
                f"{ours}shift_D": (f"{name}.bn.bias", SAME),
                f"{ours}mean_D": (f"{name}.bn.running_mean", SAME),
                f"{ours}variance_D": (f"{name}.bn.running_var", SAME),
            }
    return name_map.table(names, plain, {})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> weights.Frozen:
    """Loads the network from a safetensors file in pytorch-fid's layout, over `mesh`, computing in `dtype`.

    Raises:
        UserError: if the file holds another network, such as an Inception of ImageNet, or is damaged.
    """
    if Path(path).suffix in (".pth", ".pt"):
        raise UserError(f"{path} is a pickle, which may run any program. {_CONVERT}")
    files = hub.TensorFiles(path, _published_name)
    classes = files.tensors.get("fc.weight")
    if classes is not None and classes.shape[0] != _CLASSES:
        raise UserError(
            f"{files.source} is an Inception of {classes.shape[0]} classes; FID's has {_CLASSES}: "
            "take pytorch-fid's pt_inception-2015-12-05."
        )
    return weights.load(lambda rngs: Inception(dtype=dtype, rngs=rngs), entries, files, mesh, jnp.float32, IGNORED)


def _published_name(name: str) -> str:
    """Gives a tensor's name, that of a batch norm's counter turned round, so that all counters begin alike."""
    return f"{_COUNTED}.{name}" if name.endswith(_COUNTED) else name
