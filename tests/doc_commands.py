"""Whether a command of the documentation would be accepted, found out without running it."""

import argparse
import fnmatch
import importlib
import inspect
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, wraps
from itertools import pairwise

import pytest
import typer
import yaml
from doc_settings import require_accepted
from helpers import ROOT
from typer.testing import CliRunner

import stages
from stages.cli import app
from stages.shared.params import load_params

# Programs of others, of which nothing can be checked here.
FOREIGN = {
    "cd",
    "dask",
    "ffmpeg",
    "git",
    "mkdir",
    "pre-commit",
    "source",
    "srun",
    "ssh",
    "trtexec",
    "v4l2-ctl",
    "xdg-open",
}
VARIABLE = re.compile(r"([A-Z][A-Z_]*)=(.*)")
SEPARATORS = ("&&", "||", "|", ";")


def require_command(line: str) -> None:
    """Check every command of a line.

    Raises:
        AssertionError: a program, verb, option, value, setting, stage, target, extra or file does
            not exist.
    """
    for words in _split(line):
        variables = _take_variables(words)
        if not words:
            continue
        program, *arguments = words
        assert program in FOREIGN or program in CHECKS, f"{program}: no check for this program"
        if program in CHECKS:
            CHECKS[program](arguments, variables)


def _split(line: str) -> list[list[str]]:
    """The words of each command of a line; a comment is left out."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in SEPARATORS:
            found.append([])
        else:
            found[-1].append(word)
    return found


def _take_variables(words: list[str]) -> dict[str, str]:
    """Remove the leading NAME=value from a command, and return them."""
    variables = {}
    while words and (match := VARIABLE.fullmatch(words[0])):
        require_variable(match[1])
        variables[match[1]] = match[2]
        del words[0]
    return variables


def require_variable(name: str) -> None:
    """That something reads an environment variable of this project; those of others are not known
    here.
    """
    assert not name.startswith("MTKD_") or name in _variables_read(), (
        f"{name}: nothing reads this variable"
    )


@cache
def _variables_read() -> set[str]:
    """Those of the command line's options, and those that the code or a test looks up."""
    found = set()
    for folder in ("stages", "pipeline", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(
                re.findall(
                    r'(?:envvar=|environ.get\(|environ\[|getenv\()"(MTKD_\w+)"', path.read_text()
                )
            )
    return found


def require_mtkd(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """Have mtkd's own command line read the arguments, with stages that do nothing."""
    if arguments[:1] == ["--install-completion"]:  # which would change the user's shell
        require_option(arguments[0])
        return
    with pytest.MonkeyPatch.context() as patch:
        _silence_stages(patch)
        result = CliRunner().invoke(app, list(arguments), env=variables)
    assert result.exit_code == 0, (
        f"mtkd {shlex.join(arguments)}: {result.output or result.exception!r}"
    )
    if arguments[:1] == ["study"]:
        _require_study(arguments[1], arguments)


def _silence_stages(patch: pytest.MonkeyPatch) -> None:
    """Let no command line compute, write, or depend on what this machine has."""
    for module in _stage_modules():
        for name, function in list(vars(module).items()):
            if _does_work(module, name, function):
                patch.setattr(module, name, _nothing)
    patch.setattr("stages.cli._require", _nothing)
    patch.setattr("torch.cuda.is_available", lambda: True)


def _nothing(*_: object, **__: object) -> None:
    pass


@cache
def _stage_modules():
    """All modules of stages/ but the command line; those whose extra is not installed are left
    out.
    """
    found = []
    for info in pkgutil.walk_packages(stages.__path__, "stages."):
        if info.name != "stages.cli" and not info.ispkg:
            with suppress(ImportError):
                found.append(importlib.import_module(info.name))
    return found


def _does_work(module, name: str, function: object) -> bool:
    """Whether it is a public function of this module that returns nothing."""
    if (
        name.startswith("_")
        or not inspect.isfunction(function)
        or function.__module__ != module.__name__
    ):
        return False
    return inspect.signature(function).return_annotation is None


def _require_study(name: str, arguments: Sequence[str]) -> None:
    """The names of students and ways, which a study reads when it runs."""
    from stages.study.gain import STUDENTS, STUDIES, _unlabelled_conditions

    if name not in STUDIES:
        return
    ways = {*STUDIES[name]}
    if name == "gain":
        ways |= {*_unlabelled_conditions(2)}
    for option, known in (("--way", ways), ("--student", {*STUDENTS})):
        for value in _values(option, arguments):
            assert value in known, f"{option} {value}: one of {'; '.join(sorted(known))}"


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """What follows each mention of an option."""
    return [after for word, after in pairwise(arguments) if word == option]


def is_verb(words: Sequence[str]) -> bool:
    """Whether the words are the name of a command of mtkd, or of a group of them, and nothing
    else.
    """
    command = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return False
    return True


def require_dvc(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """Have DVC's own parser read the arguments; then check settings, stages and files of
    metrics.
    """
    parsed = _parse_dvc(arguments)
    for assignment in getattr(parsed, "set_param", None) or []:
        key, _, values = assignment.partition("=")
        for value in _grid(values):
            require_accepted(key, yaml.safe_load(value))
    if arguments[0] == "repro" or arguments[:2] == ["exp", "run"]:
        for target in parsed.targets:
            assert target in _dvc_stages(), f"{target}: dvc.yaml has no such stage"
    if arguments[0] == "metrics":
        for target in getattr(parsed, "targets", None) or []:
            assert any(ROOT.glob(target)), f"{target}: there is no such file"


def _parse_dvc(arguments: Sequence[str]) -> argparse.Namespace:
    from dvc.cli import DvcParserError

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dvc.cli.parser.logger.error", said.append)
        try:
            return _dvc_parser().parse_args(list(arguments))
        except DvcParserError as error:
            raise AssertionError(
                f"dvc {shlex.join(arguments)}: not accepted by DVC: {said}"
            ) from error


@cache
def _dvc_parser():
    from dvc.cli.parser import get_main_parser

    return get_main_parser()


def _grid(values: str) -> list[str]:
    """The values of a grid such as 3,30; a list in brackets is one value."""
    return [values] if values.startswith("[") else values.split(",")


@cache
def _dvc_stages() -> set[str]:
    """Stages and groups of stages, and each member of a group as group@member."""
    known = set()
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        known.add(name)
        members = stage.get("foreach", [])
        if members == "${data.anatomies}":
            members = load_params(ROOT / "params.yaml").data.anatomies
        known.update(f"{name}@{member}" for member in members)
    return known


def require_make(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """That the Makefile has the targets, and reads the variables that are set after them."""
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    targets = re.findall(r"^([\w./-]+):(?!=)", makefile, re.MULTILINE)
    for argument in arguments:
        if match := VARIABLE.fullmatch(argument):
            assert f"$({match[1]})" in makefile, f"make {argument}: no such variable"
        else:
            assert argument in targets, f"make {argument}: the Makefile has no such target"


def require_pip(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """That pyproject.toml has the extras of `pip install -e '.[extra]'`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            for extra in match[1].split(","):
                assert extra in project["optional-dependencies"], (
                    f"{extra}: pyproject.toml has no such extra"
                )


def require_python(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """`python -m stages.cli`, or a script of docs/."""
    if arguments[:2] == ["-m", "stages.cli"]:
        require_mtkd(arguments[2:], variables)
        return
    script, *rest = arguments
    _require_file(script)
    _require_script(script, rest)


def _require_script(script: str, arguments: Sequence[str]) -> None:
    """Have the script's own command line read the arguments, with a main function that does
    nothing.
    """
    result = CliRunner().invoke(_script(script), list(arguments))
    assert result.exit_code == 0, (
        f"{script} {shlex.join(arguments)}: {result.output or result.exception!r}"
    )


@cache
def _script(script: str) -> typer.Typer:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / script).parent))
        main = importlib.import_module((ROOT / script).stem).main
    command = typer.Typer()
    command.command()(wraps(main)(lambda **_: None))
    return command


def require_torchrun(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """Have torchrun's own parser find the module, and mtkd read the rest."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(list(arguments))
    assert parsed.module and parsed.training_script == "stages.cli", (
        f"torchrun {shlex.join(arguments)}: -m stages.cli"
    )
    require_mtkd(parsed.training_script_args, variables)


def require_cp(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """That the files are there; one that becomes params.yaml must be accepted as it."""
    *sources, target = arguments
    for source in sources:
        _require_file(source)
        if target == "params.yaml":
            load_params(ROOT / source)


def require_pytest(arguments: Sequence[str], variables: dict[str, str]) -> None:
    """That the test files are there, and the word after -k in one of them."""
    files = fnmatch.filter(arguments, "*.py")
    for file in files:
        _require_file(file)
    for word in _values("-k", arguments):
        assert any(word in (ROOT / file).read_text() for file in files), (
            f"-k {word}: selects no test"
        )


def _require_file(name: str) -> None:
    assert (ROOT / name).is_file(), f"{name}: there is no such file"


def require_option(name: str) -> None:
    """That mtkd, DVC or a script of docs/ has an option of this name."""
    paths = (ROOT / "docs/scripts").glob("*.py")
    scripts = [
        str(path.relative_to(ROOT)) for path in paths if "shared.run(main)" in path.read_text()
    ]
    programs = [typer.main.get_command(program) for program in (app, *map(_script, scripts))]
    known = {*_dvc_options(_dvc_parser())}
    for program in programs:
        known.update(_options(program))
    assert name in known, f"{name}: no command has this option"


def _options(command) -> Iterator[str]:
    """The options of a command and of those below it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from _options(below)


def _dvc_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _dvc_options(below)


CHECKS = {
    "cp": require_cp,
    "dvc": require_dvc,
    "make": require_make,
    "mtkd": require_mtkd,
    "pip": require_pip,
    "pytest": require_pytest,
    "python": require_python,
    "torchrun": require_torchrun,
}
