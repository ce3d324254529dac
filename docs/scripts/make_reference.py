"""Write the reference pages that are generated: settings from pydantic, commands from Typer.

With --check nothing is written, and pages that are not current are an error.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import shared
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, CommandInfo, TyperInfo

from pipeline.errors import MtkdError
from pipeline.settings import OtherSet, Params, Phantom, Splits
from stages.cli import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
PRESETS = {"demo": "demo.yaml", "paper": "paper.yaml"}
NESTED = (OtherSet, Splits, Phantom)  # sections within data

SETTINGS = """\
# Settings of params.yaml

Every setting of the pipeline stands in `params.yaml`. Every key is required unless its description
says otherwise. No other key is known. This page is generated from `pipeline/settings.py`.

`mtkd init --preset demo` and `mtkd init --preset paper` write the values of the columns `demo` and
`paper`. Device and loader processes belong to the machine: `--device` and `--workers`, or
`MTKD_DEVICE` and `MTKD_WORKERS`.
"""
COMMANDS = """\
# Command line

All verbs of `mtkd` with their arguments and options. This page is generated from `stages/cli.py`.
The help of each verb says the same.

| exit code | means |
|---:|---|
| 0 | success |
| 1 | an error, reported in one line |
| 2 | a command line that is not understood |
| 130 | a stop by Ctrl-C |
"""


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a page is not current.")
    ] = False,
) -> None:
    """Write the generated pages of docs/reference, or check them."""
    pages = {FOLDER / "settings.md": settings_page(), FOLDER / "cli.md": commands_page()}
    if check:
        _require_current(pages)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)
        print(f"-> {path.relative_to(ROOT)}")


def _require_current(pages: Mapping[Path, str]) -> None:
    old = [p for p, text in pages.items() if not p.is_file() or p.read_text() != text]
    if old:
        names = ", ".join(str(path.relative_to(ROOT)) for path in old)
        raise MtkdError(f"{names}: not current. Run: python docs/scripts/make_reference.py")


def settings_page() -> str:
    """The page of all settings, section by section."""
    presets = {name: _preset(file) for name, file in PRESETS.items()}
    parts = [SETTINGS]
    for name, field in Params.model_fields.items():
        parts += _section(name, _model(field), presets)
    return "\n".join(parts)


def _preset(file: str) -> dict[str, Any]:
    text = (ROOT / "stages" / "presets" / file).read_text()
    return dict(yaml.safe_load(text))


def _model(field: FieldInfo) -> type[BaseModel]:
    assert inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    return field.annotation


def _section(
    name: str, model: type[BaseModel], presets: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    yield f"## {name}\n"
    yield f"{_about(name, summary)}\n"
    yield "| key | values | demo | paper | meaning |"
    yield "|---|---|---|---|---|"
    for key, values, meaning in _rows(model):
        defaults = [_shown(_looked_up(preset[name], key)) for preset in presets.values()]
        yield f"| `{name}.{key}` | {values} | {' | '.join(defaults)} | {meaning} |"
    yield ""


def _about(name: str, paragraphs: Sequence[str]) -> str:
    """A section's docstring without the words that name it."""
    text = " ".join(paragraphs[0].split())
    text = re.sub(r"^Sections? ``[^:.]*[:.] ?", "", text)
    text = text or f"How `mtkd {name}` measures."
    return f"{text[0].upper()}{text[1:]}".replace("``", "`")


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    schema = model.model_json_schema()
    for key, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split())
        assert meaning, f"{model.__name__}.{key} has no description"
        if field.annotation in NESTED:
            yield from _rows(field.annotation, f"{prefix}{key}.")
        else:
            limits = {**_limits(field), **schema["properties"][key]}
            yield f"{prefix}{key}", _values(limits), meaning


def _limits(field: FieldInfo) -> dict[str, float]:
    """Limits of a number that a validator of ours reads, which the JSON schema leaves out."""
    found = {}
    for constraint, (name, sign) in product(field.metadata, CONSTRAINTS.items()):
        if hasattr(constraint, sign):
            found[name] = getattr(constraint, sign)
    return found


CONSTRAINTS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
}


def _values(schema: Mapping[str, Any]) -> str:
    """The values that a key takes, from its JSON schema."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(each) for each in schema["anyOf"]))
    if "prefixItems" in schema:
        return "[height, width]"
    kinds = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "array": "list",
        "object": "mapping",
        "null": "`null`",
    }
    limits = [f"{sign} {schema[name]}" for name, sign in LIMITS.items() if name in schema]
    return ", ".join([kinds[schema["type"]], *limits])


LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _looked_up(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = section[part]
    return section


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} names"
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")
    return f"`{text.strip()}`"


def commands_page() -> str:
    """The page of all verbs, by the panels of ``mtkd --help``."""
    assert app.registered_callback is not None
    parts = [COMMANDS, _table(app.registered_callback.callback)]
    panels: dict[str, list[str]] = {}
    for info in app.registered_commands:
        panels.setdefault(str(info.rich_help_panel), []).append(_command(info, ()))
    for group in app.registered_groups:
        panels.setdefault(str(group.rich_help_panel), []).extend(_group(group))
    for title, commands in panels.items():
        parts += [f"## {title}\n", *commands]
    return _joined(*parts)


def _group(group: TyperInfo) -> Iterator[str]:
    """A verb with verbs of its own, and these."""
    assert group.typer_instance is not None
    own = group.typer_instance
    about = group.help if isinstance(group.help, str) else own.info.help
    callback = own.registered_callback
    table = _table(callback.callback) if callback else ""
    yield _joined(f"### mtkd {group.name}\n", f"{_text(about or '')}\n", table)
    for info in own.registered_commands:
        yield _command(info, (str(group.name),))


def _command(info: CommandInfo, path: Sequence[str]) -> str:
    assert info.callback is not None
    name = info.name or info.callback.__name__.replace("_", "-")
    heading = f"{'#' * (3 + len(path))} mtkd {' '.join([*path, name])}\n"
    return _joined(
        heading, f"{_text(info.help or info.callback.__doc__ or '')}\n", _table(info.callback)
    )


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _text(help_: str) -> str:
    return _escaped(inspect.cleandoc(help_).replace("\b\n", "").strip())


def _escaped(text: str) -> str:
    """Without what Markdown reads as a tag or as the end of a cell, outside of code."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def _table(callback: Callable[..., Any] | None) -> str:
    """Arguments and options of a verb."""
    assert callback is not None
    hints = get_type_hints(callback, include_extras=True)
    parameters = inspect.signature(callback).parameters.values()
    rows = [_row(each, hints[each.name]) for each in parameters if each.name in hints]
    shown = [row for row in rows if row]
    if not shown:
        return ""
    header = ["| argument or option | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*header, *shown, ""])


def _row(parameter: inspect.Parameter, hint: Any) -> str:
    if get_origin(hint) is not Annotated:  # the context
        return ""
    kind, info = get_args(hint)
    meaning = _escaped(" ".join((info.help or "").split()))
    if info.envvar:
        meaning = f"{meaning} Or `{info.envvar}`."
    cells = [f"`{_name(parameter, info)}`", _taken(kind, info), _default(parameter, info), meaning]
    return f"| {' | '.join(cells)} |"


def _name(parameter: inspect.Parameter, info: Any) -> str:
    if isinstance(info, ArgumentInfo):
        return info.metavar or parameter.name.upper()
    # Typer takes the first name in Option("--name") as a default until it builds the command.
    first = [info.default] if str(info.default).startswith("-") else []
    return ", ".join([*first, *(info.param_decls or [])]) or _long(parameter.name)


def _long(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _taken(kind: Any, info: Any) -> str:
    """The values that an option takes."""
    kinds = [each for each in (get_args(kind) or (kind,)) if each is not NoneType]
    if len(kinds) == 1 and get_args(kinds[0]):  # list[str] | None
        kinds = list(get_args(kinds[0]))
    value = kinds[0]
    if value is bool:
        return ""
    if issubclass(value, StrEnum):
        return ", ".join(f"`{each}`" for each in value)
    pairs = ((">=", info.min), ("<=", info.max))
    limits = [f"{sign} {limit:g}" for sign, limit in pairs if limit is not None]
    return ", ".join([WORDS[value], *limits])


WORDS = {int: "whole number", float: "number", str: "text", Path: "path"}


def _default(parameter: inspect.Parameter, info: Any) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    if parameter.default is inspect.Parameter.empty:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    values = parameter.default if isinstance(parameter.default, list) else [parameter.default]
    # A path is no code: it is a file that a run may not have written.
    return " ".join(str(each) if isinstance(each, Path) else f"`{each}`" for each in values)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    shared.run(main)
