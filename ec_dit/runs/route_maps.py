"""Maps of experts on tokens, drawn while a model trains, of the first pictures of its sample grids."""

from ec_dit.core.stopping import StopSignal
from ec_dit.maps.sheet import sheet
from ec_dit.runs.grid import SampleGrid
from ec_dit.sampling.routes import RouteTracer, without_gates
from ec_dit.train.metrics import MetricWriter
from ec_dit.train.state import TrainState


class RouteMaps:
    """Draws the first prompts of a sample grid with the moving average, and who took which token.

    Args:
        count: of the prompts.

    Attributes:
        NAME: of the pictures, in files and in TensorBoard.
    """

    NAME = "routes"

    def __init__(self, grid: SampleGrid, count: int, writer: MetricWriter, stop: StopSignal):
        self._tracer = RouteTracer(grid.generator)
        self._prompts, self._seed, self._laid_out = grid.prompts[:count], grid.seed, grid.laid_out
        self._writer, self._stop = writer, stop

    def __call__(self, done: int, state: TrainState) -> None:
        """Draws, and writes the sheet. Raises Stopped between two pictures where the run is told to stop."""
        traced = self._tracer.all(self._laid_out(state.ema), self._prompts, [0] * len(self._prompts), self._seed)
        found = [without_gates(routes) for routes in self._stop.between(traced)]
        self._writer.image(done, self.NAME, sheet(found, self._prompts))
