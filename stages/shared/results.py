"""JSON files that earlier stages wrote, read with an error that says which stage writes them."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import MtkdError


class _Record(dict[str, Any]):
    """An object of a JSON file, in which every key that is asked for has to be."""

    def __init__(self, path: Path, made_by: str, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._path, self._made_by = path, made_by

    def __missing__(self, key: str) -> Any:
        raise MtkdError(f"{self._path} holds no '{key}': run `dvc repro -s -f {self._made_by}`")


def read(path: Path, made_by: str) -> Any:
    """A JSON file of the last run, whose missing keys are errors of the file.

    Raises:
        MtkdError: there is none, or it is broken.
    """
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro {made_by}`")
    try:
        content = json.loads(
            path.read_text(), object_hook=lambda found: _Record(path, made_by, found)
        )
    except ValueError as error:
        raise MtkdError(
            f"{path} is no whole JSON ({error}): run `dvc repro -s -f {made_by}`"
        ) from error
    if not isinstance(content, _Record):
        raise MtkdError(f"{path} holds no JSON object: run `dvc repro -s -f {made_by}`")
    return content
