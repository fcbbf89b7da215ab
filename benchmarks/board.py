"""Reads scalars from TensorBoard files, as TensorBoard shows them: what a restart purged is gone."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto import event_pb2


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of the files in `folder`.

    Raises:
        ValueError: a value stands twice.
    """
    values: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events.*")):
        for event in _events(path):
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                values = {key: value for key, value in values.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    key = (value.tag, event.step)
                    if key in values:
                        raise ValueError(f"{path}: {value.tag} of step {event.step} stands twice")
                    values[key] = value.simple_value
    return values


def _events(path: Path) -> Iterator[event_pb2.Event]:
    """The records of a file, up to the one that a kill cut short."""
    data, start = path.read_bytes(), 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4  # a length and its checksum, the event and its checksum
        if end > len(data):
            return
        yield event_pb2.Event.FromString(data[start + 12 : end - 4])
        start = end
