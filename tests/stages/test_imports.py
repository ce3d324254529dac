"""Imports go one way: stages -> pipeline, stages -> cache; and within stages from the verbs
down.
"""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

CLI = "stages/cli.py"
# A file in the root of stages/ is a stage of dvc.yaml or a verb.
VERBS = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("*.py")} - {
    "stages.cli",
    "stages.__init__",
}
# Rooms of the verbs of the same name, and who else may enter.
ROOMS = {
    "stages.study": {CLI},
    "stages.benchmarks": {CLI, "stages/plan.py"},
    "stages.live_page": {"stages/live.py"},
}


def imports_of(path, *, top_level=False):
    """Names of the modules that a file imports, also of what it may import from a package."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports_from(path, module, *, top_level=False):
    """Whether a file imports a module or something in it."""
    names = imports_of(path, top_level=top_level)
    return any(f"{name}.".startswith(f"{module}.") for name in names)


def importers(module):
    """The files of stages/ that import a module or something in it."""
    paths = (ROOT / "stages").rglob("*.py")
    return {p.relative_to(ROOT).as_posix() for p in paths if imports_from(p, module)}


@pytest.mark.parametrize(
    ("package", "others"),
    [("pipeline", {"cache", "stages"}), ("cache", {"pipeline", "stages", "torch"})],
)
def test_packages_import_downwards_only(package, others):
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & others, path


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_only_the_command_line_imports_a_verb(verb):
    assert importers(verb) == {CLI}


@pytest.mark.parametrize("room", ROOMS)
def test_only_few_enter_the_rooms_of_verbs(room):
    inside = room.replace(".", "/") + "/"
    assert {path for path in importers(room) if not path.startswith(inside)} == ROOMS[room]


@pytest.mark.parametrize("room", ["stores", "study", "benchmarks", "reporting"])
def test_what_is_shared_imports_nothing_above_it(room):
    """But for preflight: it looks at the disk as the stores will, once it is called."""
    allowed = {"preflight.py"} if room == "stores" else set()
    for path in (ROOT / "stages/shared").glob("*.py"):
        assert not imports_from(path, f"stages.{room}", top_level=True), path
        assert not imports_from(path, f"stages.{room}") or path.name in allowed, path


def test_help_imports_no_heavy_library():
    heavy = ("torch", "zarr", "cv2", "numpy")
    code = f"import sys, stages.cli; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert printed.strip() == "[]"
