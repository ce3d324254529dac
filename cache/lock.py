"""One writer to a scratch folder: a lock that the kernel lets go of when its process ends, however it does."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO
from weakref import WeakSet

from cache.errors import StoreBusyError

# A forked loader worker that outlives its killed parent must not hold the lock on.
_held: WeakSet[IO[str]] = WeakSet()
os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


class ScratchLock:
    """Holds a scratch folder for this process, until ``let_go`` or the end of a ``with`` block.

    Raises:
        StoreBusyError: another process holds it.
    """

    def __init__(self, scratch: Path) -> None:
        self._file = scratch.with_name(f"{scratch.name}.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed it since it was opened here; then it no longer keeps others out.
            held = os.path.samestat(os.fstat(self._file.fileno()), Path(self._file.name).stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            self._file.close()
            raise StoreBusyError(f"{scratch} is being written by another process: wait for it, or stop it")
        _held.add(self._file)

    def let_go(self) -> None:
        """Let others in; nothing is left beside the folder."""
        if not self._file.closed:
            Path(self._file.name).unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> "ScratchLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.let_go()


def is_being_written(scratch: str | Path) -> bool:
    """Whether a live process writes a store in this scratch folder."""
    scratch = Path(scratch)
    if not scratch.with_name(f"{scratch.name}.lock").exists():
        return False
    try:
        ScratchLock(scratch).let_go()
    except StoreBusyError:
        return True
    return False
