"""The shapes that pictures are brought to: one square, or buckets of about its area for every aspect ratio."""

from collections.abc import Iterable
from fractions import Fraction

from ec_dit.core.errors import UserError

Shape = tuple[int, int]  # Rows and columns in pixels (Y, X).


def square(resolution: int) -> tuple[Shape, ...]:
    """Gives the square of that side, alone."""
    _check(resolution=resolution)
    return ((resolution, resolution),)


def buckets(resolution: int, step: int, max_aspect: float = 2.0) -> tuple[Shape, ...]:
    """Lists all shapes whose sides are multiples of `step`, one of them the longest within the square's area, tall to wide.

    Args:
        resolution: side of the square, which is among them; none has more pixels, and so more tokens, than it.
        step: pixels; it must divide `resolution`.
        max_aspect: longer side over shorter side, at most.
    """
    _check(resolution=resolution, step=step, max_aspect=max_aspect)
    if resolution % step:
        nearest = max(1, round(resolution / step)) * step
        raise UserError(f"resolution is {resolution}; it must be a multiple of {step}, such as {nearest}")
    side = resolution // step
    area = side * side
    wide = {(y, area // y) for y in range(1, side + 1)}
    wide |= {(area // x, x) for x in range(side, int(min(area, max_aspect * side)) + 1)}
    wide = {(y * step, x * step) for y, x in wide if x / y <= max_aspect}
    shapes = wide | {(x, y) for y, x in wide}
    return tuple(sorted(shapes, key=lambda shape: (Fraction(shape[1], shape[0]), shape)))


def nearest(shapes: Iterable[Shape], width: int, height: int) -> Shape:
    """Picks the shape whose aspect ratio is least far, by a factor, from that of a picture.

    Of several, the largest; of those, the one with fewest rows.
    """

    def distance(shape: Shape) -> tuple[Fraction, int, Shape]:
        rows, columns = shape
        ratio = Fraction(width * rows, height * columns)  # Exact, so that ties are ties everywhere.
        return max(ratio, 1 / ratio), -rows * columns, shape

    return min(shapes, key=distance)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value >= 1:  # So that nan fails too.
            raise UserError(f"{name} is {value}; it must be at least 1")
