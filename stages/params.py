"""Reading params.yaml: every problem is reported together, by the key's full name and what would be accepted."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import MtkdError
from pipeline.settings import Params

PARAMS = Path("params.yaml")


def load_params(path: Path = PARAMS) -> Params:
    """The checked settings of a params.yaml.

    Raises:
        MtkdError: the file is missing or no YAML, a key is missing or unknown, or a value is not accepted.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise MtkdError(
            f"{path} is not here: run mtkd in the project's folder, or write one with `mtkd init`"
        ) from None
    except yaml.YAMLError as error:
        raise MtkdError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise MtkdError(f"{path} holds no sections: write one with `mtkd init`")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(e)}" for e in error.errors(include_url=False))
        raise MtkdError(f"{path}:\n{problems}") from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: no such key; {_known(problem['loc'])}"
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{key}: {message}, found {problem['input']!r}"


def _known(location: tuple[str | int, ...]) -> str:
    """The keys that would be accepted where an unknown one stands."""
    section: Any = Params
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return f"known here: {', '.join(section.model_fields)}"
