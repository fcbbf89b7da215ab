import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import registry


def test_makes_sources_with_their_options():
    source = registry.make_source("shapes", {"train": 3, "seed": 5})
    assert source.name == "shapes" and source.options.seed == 5
    assert len(list(source.records("train"))) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shaeps", {}, "no source 'shaeps' .did you mean shapes.*shapes, emoji, folder"),
        ("shapes", {"sed": 1}, "no option 'sed' .did you mean seed"),
        ("folder", {}, "needs the option 'path'"),
    ],
)
def test_mistakes_name_the_nearest(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.make_source(name, options)
