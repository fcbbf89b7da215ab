"""python -m ec_dit.report: curves as they stand in the runs' files, compared at equal steps, images and FLOPs, safe to open."""

import base64
import html.parser
import json
import re
import shutil

import pytest

from ec_dit import report
from ec_dit.config import specs
from ec_dit.models import sizes
from ec_dit.runs.workdir import Workdir
from tests import runs

pytestmark = [pytest.mark.slow, pytest.mark.extra("plots"), pytest.mark.xdist_group("unbroken")]
NASTY = "<script>alert('$1$')&<b>"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    run, *_ = runs.unbroken(tmp_path_factory)
    return run / "unbroken"


@pytest.fixture
def two(workdir, tmp_path):
    """Copies of a run, with figures of their own: one to step 40, one to step 20."""
    places = [tmp_path / "one", tmp_path / NASTY]
    for place, last, height in zip(places, (40, 20), (3.0, 1.0), strict=True):
        shutil.copytree(workdir, place)
        rows = [
            {
                "step": step,
                "loss": height + step / 10,
                "router/untaken/0": 0.1,
                "router/untaken/1": 0.3,
                "images_per_second": 9.0,
            }
            for step in range(10, last + 1, 10)
        ]
        rows[-1] |= {"validation_loss/train": height}
        (place / "images").mkdir()
        for step in range(10, 100, 10):
            (place / f"images/samples_{step:07d}.png").write_bytes(f"picture {step}".encode())
        (place / "images/routes_0000010.png").write_bytes(b"experts 10")
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(place) for place in places]


def call(out, *workdirs, more=()):
    return report.main(["report", f"--workdir={','.join(workdirs)}", f"--out={out}", *more])


def test_figures_stand_at_equal_steps_images_and_flops(two):
    from ec_dit.reporting import page, story

    first, _ = stories = story.read(two)
    assert [each.name for each in stories] == ["one", NASTY]
    assert first.curve("loss") == [(10, 4.0), (20, 5.0), (30, 6.0), (40, 7.0)]
    assert first.at("loss", "steps", 25) == pytest.approx(5.5) and first.at("loss", "steps", 41) is None
    assert first.at("loss", "steps", 9) is None and first.at("validation_loss/train", "steps", 40) == 3.0
    config = Workdir(two[0]).config()
    tower = specs.tower_spec(config, Workdir(two[0]).tokenizer())
    image = sizes.train_flops_per_image(
        specs.dit_spec(config),
        specs.kept_tokens(config),
        config.text.length,
        specs.computed_factor(config),
        tower,
    )
    batch = config.train.batch_size
    assert [cost["images"] for cost in first.costs] == [batch * step for step in (10, 20, 30, 40)]
    assert first.costs[-1]["FLOPs"] == pytest.approx(40 * batch * image)
    assert story.common_end(stories, "loss", "images") == 20 * batch
    matched = page._matched(stories)
    assert ("loss", "20", ["5", "3"]) in matched["steps"]
    # At step 20 the first has no held-out loss: it was scored at step 40 alone.
    assert ("validation_loss/train", "20", ["", "1"]) in matched["steps"]
    panels = page._panels(stories, ("router/.*",))
    assert panels == {"router/untaken": ["router/untaken/0", "router/untaken/1"]}
    assert page._curves(stories, panels, "steps")["router/untaken"]["one"][0] == (10, pytest.approx(0.2))
    assert page._differences(stories) == []


class Reader(html.parser.HTMLParser):
    """Counts what is open, and collects tags, links and text."""

    VOID = ("meta", "input", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_runs_nothing(two, workdir, tmp_path, capsys):
    out = tmp_path / "deep" / "report.html"
    assert call(out, *two, str(workdir)) == 0
    assert "3 runs on one page" in capsys.readouterr().out
    text = out.read_text()
    found = Reader(text)
    assert not found.open and "script" not in found.tags and NASTY in found.text
    assert found.links and all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert not re.search(r"url\((?!#)", text) and not re.search(r"\son\w+=", text)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert {"over-steps", "over-images", "over-FLOPs"} <= set(ids)
    assert found.tags.count("img") == 2 * (6 + 1)
    pictures = [base64.b64decode(link.partition(",")[2]).decode() for link in found.links if link.startswith("data:")]
    assert pictures[:6] == [f"picture {step}" for step in (10, 30, 40, 60, 70, 90)]  # the first, the last, some between
    assert pictures[6] == "experts 10"
    for words in ("Loss by noise level", "Routers", "Side by side", "Settings that differ"):
        assert words in found.text
    assert call(out, two[0], more=["--grids=0"]) == 0  # written anew
    again = Reader(out.read_text())
    assert "img" not in again.tags and "Side by side" not in again.text


@pytest.mark.parametrize(
    ("workdirs", "out", "message"),
    [
        ([], "r.html", "--workdir=DIR is needed"),
        (["nowhere"], "r.html", "nowhere is no workdir of a run"),
        (["one", "one"], "r.html", "one is given twice"),
        (["empty"], "r.html", "has no figures yet"),
        (["one"], "r.pdf", "must end in .html"),
        (["one"], "folder.html", "is a folder"),
    ],
)
def test_wrong_input_is_one_message(workdir, tmp_path, monkeypatch, capsys, workdirs, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "one").symlink_to(workdir)
    shutil.copytree(workdir, tmp_path / "empty", ignore=shutil.ignore_patterns("metrics.jsonl", "checkpoints"))
    assert call(out, *workdirs) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
