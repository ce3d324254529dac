"""Whether a setting that the documentation names is one of params.yaml, and its value would be
accepted.
"""

import copy
from collections.abc import Iterator
from typing import Any

import yaml
from helpers import ROOT
from pydantic import ValidationError

from pipeline.settings import Params


def require_known(key: str) -> None:
    """That params.yaml has a key such as data.splits.val, or a section such as teacher.* ."""
    section: Any = _default()
    for part in key.removesuffix(".*").split("."):
        assert isinstance(section, dict) and part in section, f"{key}: params.yaml has no such key"
        section = section[part]


def require_accepted(key: str, value: object) -> None:
    """That params.yaml has the key, and is accepted with this value."""
    require_known(key)
    params = copy.deepcopy(_default())
    *path, name = key.split(".")
    section = params
    for part in path:
        section = section[part]
    section[name] = value
    try:
        Params.model_validate(params)
    except ValidationError as error:
        raise AssertionError(f"{key}={value!r} is not accepted: {error}") from error


def require_all_accepted(text: str) -> None:
    """That every setting of some YAML is."""
    for key, value in _leaves(yaml.safe_load(text)):
        require_accepted(key, value)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is no section, with its full key."""
    for name, value in tree.items():
        if isinstance(value, dict) and name != "others":  # whose keys are free
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _default() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())
