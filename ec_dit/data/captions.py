"""What a caption alone tells about its image."""

import re

_SIDED = re.compile(
    r"\b(left|right|leftwards?|rightwards?|clockwise|counter-?clockwise|anti-?clockwise|east|west|eastern|western"
    r"|facing|o'clock|text|letters?|words?|numbers?|digits?|logo|sign|signs|saying|says|reads|written|titled)\b"
    r"|[0-9\"“”]",
    re.IGNORECASE,
)


def may_mirror(caption: str) -> bool:
    """Whether a caption stays true, as far as its words tell, when its image is mirrored left to right.

    False where it names a side or a direction, or speaks of writing, which mirroring would make unreadable.
    """
    return not _SIDED.search(caption)
