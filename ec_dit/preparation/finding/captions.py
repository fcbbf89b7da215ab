"""What a caption alone tells about its image."""

import re

_SIDES = (
    r"(top|bottom|upper|lower)?(left|right)(most|side|hand(ed|er)?|wards?|bound)?",
    r"(north|south)?(east|west)(ern|erly|wards?|bound|most)?",
    r"((counter|anti)-?)?clockwise|facing|o['\u2019]clock|starboard",
)
_WRITING = (
    r"texts?|letter(s|ed|ing)?|words?|wording|numbers?|numbered|numerals?|digits?|alphabets?|writing|written|typed",
    r"hand(writing|written)|calligraphy|typography|graffiti|monogram(s|med)?|autograph(s|ed)?|signed",
    r"says?|saying|reads|spell(s|ed|ing)|inscri(bed|ptions?)|caption(s|ed)?|(sub)?titles?|(sub)?titled|quotes?",
    r"headlines?|slogans?|logos?|label(s|l?ed)?|watermark(s|ed)?|barcodes?|newspapers?|posters?|banners?",
    r"sign(s|age|boards?|posts?)?|billboards?|scoreboards?|licen[cs]e plates?|maps?|clocks?",
)
_SIDED = re.compile(rf"\b({'|'.join(_SIDES + _WRITING)})\b|[0-9\"“”]", re.IGNORECASE)


def may_mirror(caption: str) -> bool:
    """Tells whether a caption stays true, as far as its words tell, when its image is mirrored left to right.

    False where it names a side or a direction, or speaks of writing, which mirroring would make unreadable.
    """
    return not _SIDED.search(caption)
