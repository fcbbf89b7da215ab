"""What README, CONTRIBUTING, the site and the workflows name: commands, targets, pages and figures that are there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ec_dit.__main__ import COMMANDS
from ec_dit.models.paper import PAPER
from ec_dit.models.sizes import sizes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PAGES = [README, *(path.read_text() for path in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])]
ROWS = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|[^|]*\| ([^|]*) \| ([^|]*) \|$", README, re.MULTILINE)


def targets():
    names = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {name for line in names for name in line.split()}


def made(text):
    """Targets in calls of make, which stand in code; after a name, other words are comments or options."""
    code = re.findall(r"`(make [^`\n]*)`|^(?:- run: )?(make .*)$", text, re.MULTILINE)
    calls = [("".join(pair)).partition("#")[0].split()[1:] for pair in code]
    return {word for call in calls for word in call if re.fullmatch(r"[a-z][a-z-]*", word)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    called = {name for job in jobs for step in job["steps"] for name in made(step.get("run", ""))}
    assert called <= targets()
    scripts = [word for job in jobs for step in job["steps"] for word in re.findall(r"bash (\S+)", step.get("run", ""))]
    assert all((ROOT / script).is_file() for script in scripts)
    assert called or scripts


def test_pull_requests_and_nights_run_what_they_promise():
    text = {path.stem: path.read_text() for path in WORKFLOWS}
    assert made(re.sub(r"^ *- ", "- ", text["checks"], flags=re.MULTILINE)) == {"lint", "test-fast", "wheel", "site"}
    matrix = yaml.safe_load(text["checks"])["jobs"]["tests"]["strategy"]["matrix"]["python-version"]
    assert matrix == re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    assert "bash .ci/run" in text["nightly"] and "make coverage" in text["nightly"]


def test_pages_name_targets_and_commands_that_exist():
    for text in PAGES:
        assert made(text) <= targets()
        assert set(re.findall(r"^ec-dit (\w+)", text, re.MULTILINE)) <= COMMANDS.keys()


def test_hooks_before_a_commit_are_those_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    rule = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    linted = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in rule.splitlines()]
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in hooks] == linted


def test_the_site_lists_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    assert sorted(pages(nav)) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))


def test_the_reference_names_modules_that_exist():
    text = (ROOT / "docs/reference/modules.md").read_text()
    files = [ROOT / name.replace(".", "/") for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]
    assert files and all(file.with_suffix(".py").is_file() or (file / "__init__.py").is_file() for file in files)


def test_the_readme_lists_every_config():
    named = [name for names, _, _ in ROWS for name in re.findall(r"\w+", names)]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "from_run")


def billions(number):
    return f"{number / 1e9:.2g}" if number < 9.95e9 else f"{number / 1e9:.0f}"


@pytest.mark.parametrize("row", [row for row in ROWS if "predicted" in row[2]], ids=lambda row: row[0])
def test_figures_of_the_readme_are_those_of_the_plans(row):
    names, parameters, told = row
    names = re.findall(r"\w+", names)
    plans = json.loads((ROOT / "docs/plans.json").read_text())
    trained = [plans[f"{name} train"] for name in names]
    (chips,) = {plan["devices"] for plan in trained}
    (topology,) = {plan["topology"] for plan in trained}
    hours = sorted(round(plan["hours_800k"]) for plan in trained)
    span = f"{hours[0]}" if hours[0] == hours[-1] else f"{hours[0]} - {hours[-1]}"
    assert told == f"{chips} chips of {topology.partition(':')[0]}: {span} h, predicted"
    totals = sorted(sizes(PAPER[name].spec).total for name in names)
    low, high = billions(totals[0]), billions(totals[-1])
    assert parameters == f"{low if low == high else f'{low} - {high}'} B"
