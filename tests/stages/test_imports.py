"""Imports go one way: stages -> pipeline, stages -> cache."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.parametrize(
    ("package", "others"),
    [("pipeline", {"cache", "stages"}), ("cache", {"pipeline", "stages", "torch"})],
)
def test_packages_import_downwards_only(package, others):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & others, path


def test_help_imports_no_heavy_library():
    code = "import sys, stages.cli; print([m for m in ('torch', 'zarr', 'cv2', 'numpy') if m in sys.modules])"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"
    )
