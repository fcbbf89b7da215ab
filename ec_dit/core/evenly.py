"""Some of many, at even distances, for what has no room for all."""


def evenly(count: int, most: int) -> list[int]:
    """Gives at most so many of the numbers below `count`: the first, the last, and some between; the first where one is asked."""
    some = min(count, most)
    return [round(place * (count - 1) / max(1, some - 1)) for place in range(some)]
