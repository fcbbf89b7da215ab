"""What it costs to keep the experts of every token while pictures are drawn: docs/routing.md.

    python benchmarks/recording.py --workdir=runs/shapes [--prompt="a red circle"] [--batch=4] [--rounds=15]

Both programs of a run, the one that draws and the one that keeps routes as well, draw the same batch in turn; a round's ratio is
of its two times, and the median of rounds counts. Whether the pictures are the same is said too.
"""

import argparse
import statistics

import clock
import jax
import numpy as np

import ec_dit
from ec_dit.sampling.routes import RouteTracer


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--prompt", default="a red circle")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    run = ec_dit.load(given.workdir)
    generator = run.generator(batch_size=given.batch)
    tracer = RouteTracer(generator, given.batch)
    prompts, indices = [given.prompt] * given.batch, list(range(given.batch))

    def drawn() -> np.ndarray:
        return generator(run.params, prompts, indices, 0)

    def traced() -> np.ndarray:
        return np.stack([routes.image_YXZ for routes in tracer.all(run.params, prompts, indices, 0)])

    apart = int(np.abs(drawn().astype(int) - traced()).max())  # both are compiled now
    seconds = clock.in_turn({"draw": drawn, "keep": traced}, given.rounds)
    ratios = sorted(keep / draw for keep, draw in zip(seconds["keep"], seconds["draw"], strict=True))
    device, alone = jax.devices()[0].device_kind, statistics.median(seconds["draw"])
    print(f"{device}, jax {jax.__version__}, {given.batch} pictures: {alone:.3f} s to draw")
    print(
        f"keeping routes: {statistics.median(ratios):.3f} times that, rounds from {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )
    print(f"pixels differ by {apart} of 255 at most")


if __name__ == "__main__":
    main()
