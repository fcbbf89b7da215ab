"""Pictures a second of the networks that scores are made of, beside the tools that people use: docs/evaluation.md.

    python benchmarks/scoring.py [--pictures=64] [--rounds=3] [--batch=16]      # extra conformance

Inception beside pytorch-fid's, CLIP ViT-B/32 and DINOv2-base beside transformers', all with random weights of the published
sizes, in float32, both on a GPU where JAX and torch see one, on the host's processors otherwise. Each takes pictures of
256 x 256 pixels through its own resizing, in batches; they take turns, so that whatever else the machine does meets all alike,
and the fastest round of each counts. The tools' own read and resize a batch, then compute it, as their commands' loops do.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' makers of random networks

from ec_dit.core.mesh import make_mesh
from ec_dit.encoders import clip_vision, dino, inception, pixels
from ec_dit.encoders.features import Features
from ec_dit.encoders.resizing import pytorch_fid
from ec_dit.evaluators import fd_dino
from tests import fid_network, fid_tools

Run = Callable[[list[np.ndarray]], None]


def inceptions(folder: Path, batch: int) -> tuple[Run, Run]:
    """(ours, pytorch-fid's)."""
    network = inception.load(fid_network.write(folder / "fid.safetensors"), make_mesh((-1, 1, 1, 1)))
    ours = Features(network, pytorch_fid, make_mesh((-1, 1, 1, 1)), batch)

    def theirs(pictures: list[np.ndarray]) -> None:
        for start in range(0, len(pictures), batch):
            fid_network.features(np.stack(pictures[start : start + batch]), _torch_device())

    return lambda pictures: _drain(ours, pictures), theirs


def clips(folder: Path, batch: int) -> tuple[Run, Run]:
    """(ours, transformers')."""
    import torch
    import transformers

    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig()).eval()  # ViT-B/32
    model.save_pretrained(folder / "clip")
    model.to(_torch_device())
    processor = transformers.CLIPImageProcessorPil()
    mesh = make_mesh((-1, 1, 1, 1))
    _, network = clip_vision.load(folder / "clip", mesh, np.float32)
    ours = Features(network, pixels.CLIP, mesh, batch)

    def theirs(pictures: list[np.ndarray]) -> None:
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                ready = processor(pictures[start : start + batch], return_tensors="pt")
                model(**ready.to(_torch_device())).image_embeds.cpu()

    return lambda pictures: _drain(ours, pictures), theirs


def dinos(folder: Path, batch: int) -> tuple[Run, Run]:
    """(ours, transformers')."""
    import torch
    import transformers

    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14)).eval()  # base
    model.save_pretrained(folder / "dino")
    model.to(_torch_device())
    mesh = make_mesh((-1, 1, 1, 1))
    _, network = dino.load(folder / "dino", mesh, np.float32)
    ours = Features(network, fd_dino.prepare, mesh, batch)

    def theirs(pictures: list[np.ndarray]) -> None:
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                ready = np.stack([fd_dino.prepare(picture) for picture in pictures[start : start + batch]])
                ready = torch.from_numpy(ready.transpose(0, 3, 1, 2).copy())
                model(ready.to(_torch_device())).last_hidden_state[:, 0].cpu()

    return lambda pictures: _drain(ours, pictures), theirs


def _torch_device() -> str:
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def _drain(features: Features, pictures: list[np.ndarray]) -> None:
    for _ in features(pictures):
        pass


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    fid_tools.load_torchvision()
    pictures = list(np.random.default_rng(0).integers(0, 256, (given.pictures, 256, 256, 3), np.uint8))
    print(f"ec_dit on {jax.devices()[0].device_kind}, torch on {_torch_device()}")
    print("| network | ec_dit | the tool's own | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in {"Inception (pytorch-fid)": inceptions, "CLIP ViT-B/32": clips, "DINOv2-base": dinos}.items():
            best = [0.0, 0.0]
            runs = make(Path(folder), given.batch)
            for run in runs:  # compiles, and warms up
                run(pictures[: given.batch])
            for _ in range(given.rounds):
                for side, run in enumerate(runs):
                    start = time.perf_counter()
                    run(pictures)
                    best[side] = max(best[side], len(pictures) / (time.perf_counter() - start))
            print(f"| {name} | {best[0]:.1f} /s | {best[1]:.1f} /s | {best[0] / best[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
