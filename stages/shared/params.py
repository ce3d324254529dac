"""Reading params.yaml: all problems are reported together.

Each one says the key's full name and what would be accepted.

YAML turns names into numbers, truth values and dates, and its versions disagree: 010 is 8 in YAML
1.1, which PyYAML reads, and 10 in YAML 1.2, which DVC reads. And 3.10 and 3.1 are one number to
DVC, which would not see a change. So ids of surgeries that are digits are taken as they are
written, and what could be read in two ways is refused.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from pipeline.errors import MtkdError
from pipeline.settings import Params

PARAMS = Path("params.yaml")
_TEXT = "tag:yaml.org,2002:str"
_SPLIT = re.compile(r"data\.splits\.(val|test)")
# Names that DVC reads as well: they must be text for every reader, or surgeries of digits alone.
_SURGERIES = re.compile(_SPLIT.pattern + r"\.\d+")
_NAMES = re.compile(
    r"data\.(root|unlabelled_root|anatomies\.\d+)|(teacher|student)\.(arch|pretrained)"
)
# What all versions of YAML take for the same value.
_CLEAR = {
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?i:inf)|\.(?i:nan)",
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
}


def load_params(path: Path) -> Params:
    """The checked settings of a params.yaml.

    Raises:
        MtkdError: the file is missing or not YAML, a key is missing or unknown, or a value is not
            accepted.
    """
    try:
        content, ambiguous = _read(path.read_bytes())
    except FileNotFoundError:
        raise MtkdError(
            f"{path} is not here: run mtkd in the project's folder, or write one with `mtkd init`"
        ) from None
    except yaml.YAMLError as error:
        raise MtkdError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if ambiguous:
        raise MtkdError(_listed(path, ambiguous))
    if not isinstance(content, dict):
        raise MtkdError(f"{path} holds no sections: write one with `mtkd init`")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors(include_url=False)]
        raise MtkdError(_listed(path, problems)) from error


def _listed(path: Path, problems: list[str]) -> str:
    """One problem in one line; several below each other."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    return "\n  ".join([f"{path}:", *problems])


def _read(text: bytes) -> tuple[Any, list[str]]:
    """The values of a YAML text, ids of surgeries as strings; and what could be read in two ways.

    Raises:
        YAMLError: it is none.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        problems = list(_ambiguous(loader, node, ""))
        return (None if problems else loader.construct_document(node)), problems
    finally:
        loader.dispose()


def _ambiguous(loader: yaml.SafeLoader, node: yaml.Node, key: str) -> Iterator[str]:
    """One line for each value below a key that could be read in two ways.

    Ids of surgeries become text.
    """
    if isinstance(node, yaml.MappingNode):
        yield from _ambiguous_mapping(loader, node, f"{key}." if key else "")
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _ambiguous(loader, value, f"{key}.{i}")
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        if _is_surgery(node, key):
            node.tag = _TEXT
        else:
            yield from _ambiguous_scalar(loader, node, key)


def _ambiguous_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str
) -> Iterator[str]:
    """Keys that are there twice, and what is ambiguous below each key."""
    loader.flatten_mapping(node)
    times = Counter(str(name.value) for name, _ in node.value)
    for name, number in times.items():
        if number > 1:
            yield f"{prefix}{name}: is there twice"
    for name, value in node.value:
        yield from _ambiguous(loader, value, f"{prefix}{name.value}")


def _ambiguous_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode, key: str) -> Iterator[str]:
    """A value that is not in quotes."""
    text = node.value
    is_name = _NAMES.fullmatch(key) or _SURGERIES.fullmatch(key)
    if is_name and not _is_text(node):
        yield f"{key}: {text} is not text to every reader of YAML: put it in quotes, '{text}'"
    elif node.tag in _CLEAR and not re.fullmatch(_CLEAR[node.tag], text):
        value = loader.construct_object(node)
        reading = f"is {value!r} to YAML 1.1 and something else to YAML 1.2"
        yield f"{key}: {text} {reading}: write what you mean"


def _is_surgery(node: yaml.ScalarNode, key: str) -> bool:
    """Whether a value is taken as text: all surgeries of a split, or an id of digits alone."""
    if _SPLIT.fullmatch(key):
        return True
    return bool(_SURGERIES.fullmatch(key) and re.fullmatch("[0-9]*", node.value))


def _is_text(node: yaml.ScalarNode) -> bool:
    """Whether every reader takes a value that is not in quotes for text."""
    number = re.fullmatch(
        r"[-+]?(0[box])?[.0-9][_.0-9a-f:]*(e[-+]?[0-9]+)?", node.value, re.IGNORECASE
    )
    return node.tag == _TEXT and number is None


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: no such key; {_accepted_keys(problem['loc'])}"
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{key}: {message}, found {problem['input']!r}"


def _accepted_keys(location: tuple[str | int, ...]) -> str:
    """The keys that would be accepted where an unknown one stands."""
    section: Any = Params
    for part in location[:-1]:
        is_mapping = get_origin(section) is dict
        section = get_args(section)[1] if is_mapping else section.model_fields[part].annotation
    return f"known here: {', '.join(section.model_fields)}"
