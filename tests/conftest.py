"""Before anything imports jax: eight emulated CPU devices, whatever accelerator the machine has, and one cache of programs."""

import atexit
import gc
import importlib.util
import os
import shutil
import tempfile

from tests import fid_tools, xla

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(8)}"

# What one process compiled, neither the workers of pytest-xdist nor the processes that tests start compile again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ec_dit_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

from ec_dit.nn import param

gc.set_threshold(100_000, 20, 100)  # tracing makes objects by the million, nearly all of which live on
flags.FLAGS.mark_as_parsed()  # the loader's worker processes read absl flags

_EXTRAS = {
    "conformance": ("torch", "torchvision", "transformers", "diffusers", "pytorch_fid", "cleanfid"),
    "emoji": ("emoji",),
    "icons": ("resvg_py",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "plots": ("matplotlib", "jinja2"),
    "app": ("gradio", "matplotlib", "jinja2", "playwright"),
    "notebook": ("nbclient", "ipykernel", "matplotlib"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked `extra(name)` where a package of that extra is absent."""
    for marker in item.iter_markers("extra"):
        (name,) = marker.args
        absent = [package for package in _EXTRAS[name] if importlib.util.find_spec(package) is None]
        if absent:
            pytest.skip(f"needs {', '.join(absent)}: pip install -e '.[{name}]'")
        if name == "conformance":
            fid_tools.load_torchvision()  # transformers would import it plainly


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Keeps what a module leaves behind, programs above all, out of later collections, each of which would take seconds."""
    yield
    gc.freeze()


@pytest.fixture
def randomise():
    """`build() -> module` to (graph definition, normal parameters): a fresh model starts as the identity and hides mistakes."""

    def randomise(build, seed=0, scale=0.3):
        graphdef, params, _ = param.split(nnx.eval_shape(build))
        rng = np.random.default_rng(seed)
        return graphdef, jax.tree.map(
            lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), params
        )

    return randomise


@pytest.fixture
def counting():
    """Builds a source whose pictures hold their number, from fields of its options."""
    from tests import sets  # here, as it imports much that few tests need

    return lambda **options: sets.CountingSource(sets.CountingOptions(**options))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A prepared data set of 23 training and 7 validation records."""
    from ec_dit.data import dataset
    from tests import sets

    out = tmp_path_factory.mktemp("sets") / "numbers"
    sets.write(sets.CountingSource(), out)
    return dataset.open(out)


@pytest.fixture(scope="session")
def words(numbers):
    """The tokenizer of `numbers`."""
    from ec_dit.data.tokenizer import Tokenizer

    return Tokenizer.load(numbers.tokenizer_path)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """Encoded records of three shapes, 13 + 7 + 3 for training and 5 + 2 for validation; half have a mirror image."""
    from ec_dit.data import dataset
    from tests import sets

    out = tmp_path_factory.mktemp("sets") / "mixed"
    sets.write(sets.MixedSource(), out, encoding=sets.plan())
    return dataset.open(out)
