"""The notebook runs from an empty folder, on the smoke config, and draws its pictures."""

import json
import re
from pathlib import Path

import pytest

from tests import xla

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "routing.ipynb"


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert cells()
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells())


@pytest.mark.extra("notebook")
@pytest.mark.exhaustive  # for half a minute; make notebook runs it too
def test_it_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    monkeypatch.setenv("XLA_FLAGS", xla.flags(1))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [[*cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [[one for one in some if "image/png" in one.get("data", {})] for some in outputs]
    assert [len(some) for some in pictures] == [0, 1, 0, 1, 1, 1]
    (routed,) = outputs[2]
    assert routed.text.startswith("sparse blocks [1 3], 4 evaluations, 8 x 8 patches, 8 experts")
    assert re.search(r"experts of a patch: [12]\.\d\d on average, from 0 to [2-8]$", routed.text.strip())
