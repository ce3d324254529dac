"""The tutorial notebook runs on what the stages leave, and its links lead somewhere."""

import json
import re

import matplotlib
import pytest
from helpers import ROOT

NOTEBOOK = ROOT / "docs" / "getting-started" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_every_cell_runs(cells, run):
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"{NOTEBOOK.name}: {cell['id']}", "exec")
            exec(code, namespace)
    assert namespace["winner"].max() <= len(namespace["card"].anatomies)
    matplotlib.pyplot.close("all")


def test_no_output_is_kept(cells):
    """Outputs of another run would be taken for those of the reader's."""
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")


def test_links_lead_somewhere(cells):
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", prose)
    assert targets
    for target in targets:
        assert (NOTEBOOK.parent / target).is_file(), f"{target}: there is no such file"
