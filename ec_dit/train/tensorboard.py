"""The parts of tensorboardX that are used here, imported without what it imports beside them where that is installed.

PyTorch and the clients of clouds take three seconds of every start and write nothing of ours: `metrics.py` writes the files.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NOT_NEEDED = ("torch", "boto3", "google.cloud.storage")


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """A context in which importing these modules fails, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own way to say so
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


with _absent(_NOT_NEEDED):
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

__all__ = ["Event", "SessionLog", "masked_crc32c", "summary"]
