"""One error per cause, as facts: which file, and what is wrong with it.

What to run about it is said by those who know the user's commands. Advice here concerns the disk,
or another process.
"""

from pathlib import Path
from typing import Any


class StoreError(Exception):
    """Base of all errors of a logit store; one that is pickled keeps its facts.

    Attributes:
        path: the store, or the file in it; None where an error is about values alone.
        reason: what is wrong.
    """

    _message = "{path} {reason}"

    def __init__(self, path: Path | None, reason: str = "") -> None:
        message = self._message if path is not None else "{reason}"
        super().__init__(message.format(path=path, reason=reason))
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message in quotes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason), self.__dict__


class MissingStoreError(StoreError, FileNotFoundError):
    """There is no store at this path; there may be something else, which ``reason`` says."""

    def __init__(self, path: Path, reason: str = "is missing") -> None:
        super().__init__(path, reason)


class IncompleteError(StoreError, ValueError):
    """The store was not written to its end."""

    _message = "{path} was not written to its end: {reason}"


class IdentityError(StoreError, ValueError):
    """The store was made from something else, or its metadata was edited.

    Attributes:
        found: the identity, or the format, that the store has.
        expected: the one that is needed.
    """

    _message = "{path} does not match: {reason}"

    def __init__(self, path: Path, reason: str, found: object, expected: object) -> None:
        super().__init__(path, reason)
        self.found = found
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.path, self.reason, self.found, self.expected)
        return type(self), facts, self.__dict__


class IntegrityError(StoreError, ValueError):
    """What is on disk is not what was written."""

    _message = "{path} is damaged: {reason}"


class FrameError(StoreError, IndexError, KeyError):
    """The store holds no such position (IndexError), frame id (KeyError) or view."""


class UnstorableError(StoreError, ValueError):
    """A value is not finite or beyond float16."""


class StoreBusyError(StoreError, BlockingIOError):
    """Another process is writing this store."""


class OccupiedError(StoreError, FileExistsError):
    """What lies where a store would be begun or put is not a writer's to discard."""


class NotWrittenError(StoreError, OSError):
    """The system refused to write, as on a full disk."""
