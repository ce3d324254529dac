"""Errors that a user can cause and mend, as facts: what is wrong, with which file.

What to do about them is said above, by those who know the user's commands: nothing here or in the
rest of this package names one. The command line shows an error as one line, without a traceback.
"""

from pathlib import Path


class MtkdError(Exception):
    """Base of all errors that a user can mend."""


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
        self.path, self.reason = path, reason


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
        self.path, self.part, self.found, self.expected = path, part, found, expected
