"""Folders read by one rule, and files written whole.

A reader sees the old file or the whole new one, never a part.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import MtkdError

# No room: on the disk, for this user, or for a file of this size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# This file system has no fsync: what was written is as safe as it gets.
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# What macOS, Windows and network storage put into folders, beside hidden files; in lower case.
_OF_SYSTEMS = {
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "icon\r",
}


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is not the user's.

    It is hidden, or made by macOS, Windows or network storage.
    """
    return path.name.startswith((".", "~$")) or path.name.lower() in _OF_SYSTEMS


def entries(folder: Path) -> list[Path]:
    """What a folder holds, in order, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path))


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones; links to folders are folders."""
    return [path for path in entries(folder) if path.is_dir()]


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, without hidden ones.

    Linked folders are entered, each folder once. A folder that was entered before under another
    name stands for its files.
    """
    return _walk(folder, set())


def _walk(folder: Path, entered: set[Path]) -> Iterator[Path]:
    entered.add(folder.resolve())
    for path in entries(folder):
        if path.is_dir() and path.resolve() not in entered:
            yield from _walk(path, entered)
        else:
            yield path


def kinds(files: Iterable[Path]) -> str:
    """Files counted by kind, with the first ones of each.

    Such as ``2 .txt (a/b.txt, a/d.txt), 1 folder (a/c)``.
    """
    by_kind: dict[str, list[Path]] = {}
    for file in files:
        by_kind.setdefault(_kind(file), []).append(file)
    return ", ".join(f"{_counted(len(of), kind)} ({some(of)})" for kind, of in by_kind.items())


def _counted(number: int, kind: str) -> str:
    """Such as ``2 links to nothing`` and ``2 .txt``."""
    noun, *rest = kind.split(" ", 1)
    plural = "s" if number > 1 and not noun.startswith(".") else ""
    return " ".join([f"{number} {noun}{plural}", *rest])


def _kind(file: Path) -> str:
    if file.is_dir():
        return "folder"
    if file.is_symlink() and not file.exists():
        return "link to nothing"
    return file.suffix.lower() or "file without suffix"


def some(names: Sequence[object]) -> str:
    """A list that stays short, such as ``a, b, c and 7 more``: a folder may hold thousands."""
    listed = len(names) if len(names) < 5 else 3
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return ", ".join(map(str, names[:listed])) + more


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside the target, to the disk, and move into place; the folder is created.

    What a killed process left beside the target is overwritten by the next one, and never taken for
    a result. A target that is a link is replaced, and what the link points to stays: it may lie in
    DVC's cache.

    Raises:
        MtkdError: the file can't be written, as on a full disk; what was there before still is.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            _sync(file)
        partial.replace(path)
    except OSError as error:
        full = error.errno in FULL
        fix = "make room, then start the same command again" if full else "check the path"
        raise MtkdError(f"{path} can't be written ({error.strerror}): {fix}") from error
    finally:
        with suppress(OSError):  # such as a name that is too long, which was reported above
            partial.unlink(missing_ok=True)


def _sync(file: IO[Any]) -> None:
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with keys in the given order."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def emptied(folder: Path) -> Path:
    """An empty folder: created if need be, and still the link or mount point that it may be.

    Raises:
        OSError: something in it cannot be removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def require_writable(folder: Path) -> None:
    """That a folder can be written, or made: better known before hours of work than after.

    Raises:
        MtkdError: it, or one that it would lie in, is a file, a link to nothing, or not this user's
            to write.
    """
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not above.exists():
        raise MtkdError(
            f"{above} is a link to {above.readlink()}, which is missing: mount its disk, or make "
            "that folder"
        )
    if not above.is_dir():
        raise MtkdError(f"{above} is a file, and {folder} must be a folder: move the file away")
    if not os.access(above, os.W_OK | os.X_OK):
        raise MtkdError(
            f"{folder} can't be written, {above} is read-only or another user's: change that, or "
            f"let {above} be a link to a folder that can be written"
        )


@contextmanager
def naming(path: Path, failure: type[Exception] = OSError) -> Iterator[None]:
    """A library's failure to write as one of this project, with the file's name.

    Raises:
        MtkdError: in place of ``failure``.
    """
    try:
        yield
    except failure as error:
        reason = getattr(error, "strerror", None) or error
        raise MtkdError(
            f"{path} cannot be written ({reason}): make room, or choose another place"
        ) from error


class Unchanged:
    """Holds a run to the files that it began with."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._seen = {file: _stamp(file) for file in files}

    def check(self) -> None:
        """Compare sizes and times of change.

        Raises:
            MtkdError: a file is not the one that was there at the beginning.
        """
        for file, stamp in self._seen.items():
            if _stamp(file) != stamp:
                raise MtkdError(
                    f"{file} changed while it was learnt from: let no other run write it, "
                    "and start again"
                )


def _stamp(file: Path) -> tuple[int, ...]:
    """Changes when the file is written, replaced or removed."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return ()
    # Not st_ino: network file systems may number a file anew at each look.
    return status.st_size, status.st_mtime_ns
