"""A suite for tests that fits one source of data."""

from tests.helpers import PlainSuite


class Suite(PlainSuite):
    """Never gets as far as drawing."""

    sources = ("emoji",)
