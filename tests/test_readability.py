"""Functions that can be read: what ruff does not measure, for every module of the packages."""

import ast
from statistics import median, quantiles

import pytest
from helpers import ROOT

PACKAGES = ("cache", "pipeline", "stages", "docs/scripts")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_PATHS = 12
MOST_PARAMETERS = 8
# A store says of itself what it was made from; a verb of the command line has all its options.
MANY_PARAMETERS = ("create_store",)


def tree_of(path):
    return ast.parse(path.read_text())


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def nested_comprehensions(tree):
    """Lines of comprehensions inside of others, or with two loops."""
    lines = set()
    for outer in ast.walk(tree):
        if isinstance(outer, COMPREHENSIONS):
            inner = [n for n in ast.walk(outer) if isinstance(n, COMPREHENSIONS) and n is not outer]
            if inner or len(outer.generators) > 1:
                lines.add(outer.lineno)
    return sorted(lines)


def double_assignments(tree):
    """Lines that give several names several values, but for an exchange of two."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            targets = [t for t in node.targets if isinstance(t, ast.Tuple)]
            for target in targets:
                names = sorted(map(ast.unparse, target.elts))
                if names != sorted(map(ast.unparse, node.value.elts)):
                    lines.append(node.lineno)
    return lines


def paths(function):
    """Ways through a function: McCabe's, and those of comprehensions and their conditions."""
    count = 1
    for node in ast.walk(function):
        if isinstance(
            node, ast.If | ast.IfExp | ast.For | ast.While | ast.ExceptHandler | ast.Assert
        ):
            count += 1
        elif isinstance(node, COMPREHENSIONS):
            count += sum(1 + len(generator.ifs) for generator in node.generators)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.Match):
            count += len(node.cases)
    return count


def parameters(function):
    """How many a caller may give."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([a for a in every if a.arg not in ("self", "cls")])


def statements(function):
    """Lines of code without the docstring."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_line_hides_another(path):
    tree = tree_of(path)
    assert nested_comprehensions(tree) == []
    assert double_assignments(tree) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_have_few_paths_few_parameters_and_types(path):
    is_cli = path.name == "cli.py"
    for function in functions(tree_of(path)):
        assert paths(function) <= MOST_PATHS, function.name
        if not is_cli and function.name not in MANY_PARAMETERS:
            assert parameters(function) <= MOST_PARAMETERS, function.name
        assert function.returns is not None, function.name


def test_functions_are_short():
    lengths = [statements(f) for path in MODULES for f in functions(tree_of(path))]
    assert median(lengths) <= 10
    assert quantiles(lengths, n=10)[-1] <= 25


def test_the_measures_see_what_they_should():
    tree = ast.parse(
        "a, b = 1, 2\nx, y = y, x\nz = [[i for i in j] for j in k]\nw = {i for j in k for i in j}"
    )
    assert double_assignments(tree) == [1]
    assert nested_comprehensions(tree) == [3, 4]
    function = ast.parse("def f(a, *, b):\n    'doc'\n    return [c for c in a if c or b]\n").body[
        0
    ]
    assert (paths(function), parameters(function), statements(function)) == (4, 2, 1)
