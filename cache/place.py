"""Putting a finished store in its place, which may be on another file system."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from cache.durable import sync
from cache.errors import IntegrityError, OccupiedError, StoreError
from cache.layout import is_logit_store
from cache.lock import ScratchLock
from cache.store import Store


def put_in_place(scratch: Path, target: Path, old: Path) -> None:
    """Move a store into place; what was there is replaced, a link by the store itself.

    It is renamed, or where that cannot be, as onto another disk, copied beside the target, read
    back and then renamed. The scratch folder is whole until the target is, so that a killed process
    loses nothing.

    Args:
        scratch: the store.
        target: its place.
        old: where what was replaced lies for a moment, beside ``scratch``.

    Raises:
        IntegrityError: the copy cannot be read back as it was written.
        StoreBusyError: another process copies to the same place.
        OSError: the system refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if os.path.lexists(target):
            target.replace(old)
        scratch.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_into_place(scratch, target)
        scratch.replace(old)
    with suppress(OSError):
        discard(old)


def copy_place(target: Path) -> Path:
    """The hidden folder beside a store in which a copy of it is made.

    Only a killed process leaves it there.
    """
    return target.with_name(f".{target.name}.partial")


def require_logit_store(path: Path) -> None:
    """Refuse to replace what is not a logit store; where nothing lies, nothing is refused.

    Raises:
        OccupiedError: something else lies there.
    """
    if path.exists() and not is_logit_store(path):
        raise OccupiedError(
            path, "is not a logit store and would be lost: give another path, or remove it"
        )


def discard(store: Path) -> None:
    """Remove a store, so that what a killed process leaves of it still counts as one.

    Raises:
        OccupiedError: it is not a logit store.
    """
    require_logit_store(store)
    if store.is_symlink():
        store.unlink()
    elif store.exists():
        files = [path for path in store.rglob("*") if not path.is_dir() or path.is_symlink()]
        # The file that identifies it as a store comes last.
        for file in sorted(files, key=lambda path: path == store / "zarr.json"):
            file.unlink()
        shutil.rmtree(store)


def _copy_into_place(scratch: Path, target: Path) -> None:
    folder = copy_place(target)
    with ScratchLock(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _copy(scratch, folder / "new")
            _require_whole(folder / "new", scratch)
            if os.path.lexists(target):
                target.replace(folder / "old")
            (folder / "new").replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(store: Path, copy: Path) -> None:
    """Content only: a network file system may refuse times and modes."""
    for file in sorted(path for path in store.rglob("*") if path.is_file()):
        path = copy / file.relative_to(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
            sync(target)


def _require_whole(copy: Path, store: Path) -> None:
    try:
        errors: list[IntegrityError] = Store(copy).integrity_errors()
    except StoreError as error:
        raise _bad_copy(error, store) from error
    if errors:
        raise _bad_copy(errors[0], store)


def _bad_copy(error: StoreError, store: Path) -> IntegrityError:
    return IntegrityError(
        error.path,
        f"{error.reason}; all of it is kept in {store}: check the disk that it is copied to, and "
        "start again",
    )
