"""Errors that a user can cause and mend, as facts: what is wrong, with which file.

What to do about them is said above, by those who know the user's commands: nothing here or in the
rest of this package names one. The command line shows an error as one line, without a traceback.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class MtkdError(Exception):
    """Base of all errors that a user can mend.

    One process can hand it to another, with all its facts.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[MtkdError], args: tuple[Any, ...], facts: dict[str, Any]) -> MtkdError:
    """An error of another process: made from its message, not from the arguments of its class."""
    error = kind.__new__(kind, *args)
    error.__dict__ |= facts
    return error


class TooLittleMemoryError(MtkdError):
    """The device, or the machine, has too little memory for the work."""

    def __init__(self) -> None:
        super().__init__("too little memory")


class NotFiniteError(MtkdError):
    """Terms of a training's loss are not finite.

    Attributes:
        terms: names of these terms.
    """

    def __init__(self, problem: str, terms: Sequence[str]) -> None:
        super().__init__(f"{problem}: lower learning_rate, or use precision 32-true")
        self.terms = tuple(terms)


class MissingFileError(MtkdError):
    """A file, or a folder, is not there.

    Attributes:
        path: which.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing")
        self.path = path


class DamagedFileError(MtkdError):
    """A file is there, and its content is not what was written.

    Attributes:
        path: which.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path = path
        self.reason = reason


class MismatchError(MtkdError):
    """A file is whole, and was made for something else.

    Attributes:
        path: which.
        part: what does not match, such as ``image_size``.
        found: its value in the file.
        expected: the value that is needed.
    """

    def __init__(self, path: Path, part: str, found: object, expected: object) -> None:
        super().__init__(f"{path} does not match: its {part} is {found}, expected {expected}")
        self.path = path
        self.part = part
        self.found = found
        self.expected = expected
