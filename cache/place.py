"""Putting a finished store where it ends, which may be another file system than the one where it grew."""

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
    """The hidden folder beside a store in which a copy of it is made; it is left there only by a killed process."""
    return target.with_name(f".{target.name}.partial")


def require_logit_store(path: Path) -> None:
    """Refuse to replace what is none; nothing at all may be replaced.

    Raises:
        OccupiedError: something else lies there.
    """
    if path.exists() and not is_logit_store(path):
        raise OccupiedError(
            f"{path} is no logit store and would be lost: give another path, or remove it"
        )


def discard(store: Path) -> None:
    """Remove a store, so that what a killed process leaves of it still counts as one.

    Raises:
        OccupiedError: it is none.
    """
    require_logit_store(store)
    if store.is_symlink():
        store.unlink()
    elif store.exists():
        files = [path for path in store.rglob("*") if not path.is_dir() or path.is_symlink()]
        for file in sorted(
            files, key=lambda path: path == store / "zarr.json"
        ):  # what says that it is one comes last
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
        with file.open("rb") as source, path.open("wb") as written:
            shutil.copyfileobj(source, written)
            sync(written)


def _require_whole(copy: Path, store: Path) -> None:
    remedy = f"all of it is kept in {store}: check the disk that it is copied to, and start again"
    try:
        faults = Store(copy, remedy).faults()
    except StoreError as error:
        faults = [str(error)]
    if faults:
        raise IntegrityError(faults[0])
