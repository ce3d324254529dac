"""JSON files that earlier stages wrote."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedFileError, MissingFileError


class _Record(dict[str, Any]):
    """An object of a JSON file, in which every key that is asked for has to be."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise DamagedFileError(self._path, f"it has no '{key}'")


def read(path: Path) -> Any:
    """A JSON object of the last run; a key that it lacks is an error of the file.

    Raises:
        MissingFileError: there is none.
        DamagedFileError: it is not a JSON object; or, of what is returned, a key is missing.
    """
    if not path.is_file():
        raise MissingFileError(path)
    try:
        content = json.loads(path.read_text(), object_hook=lambda content: _Record(path, content))
    except ValueError as error:
        raise DamagedFileError(path, f"it is not complete JSON ({error})") from error
    if not isinstance(content, _Record):
        raise DamagedFileError(path, "it is not a JSON object")
    return content
