"""One writer to a scratch folder.

Where the file system has flock, the kernel lets go of the lock when its process ends, however it
ends. Some file systems have none: Lustre without ``-o flock``, some NFS, some FUSE. There the lock
file itself says which process holds it. It is created exclusively, and the lock of a process of
this machine that has ended is replaced.

One thing cannot be known there: whether a process of another machine, of another container, or from
before the last start of this machine has ended. Its lock is respected until it is removed by hand;
the error says which file.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from weakref import WeakSet

from cache.durable import FULL, sync
from cache.errors import NotWrittenError, StoreBusyError

# This file system has no flock: no such call, no lock daemon, or not for its files.
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)

ADVICE = dict.fromkeys(FULL, "make room") | {errno.ENAMETOOLONG: "give a shorter name"}
MOMENT = 0.2  # seconds

# A forked loader worker that outlives its killed parent must not hold the lock on.
_held: WeakSet[IO[str]] = WeakSet()
os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])

Owner = dict[str, Any]


class ScratchLock:
    """Holds a scratch folder for this process, until ``let_go`` or the end of a ``with`` block.

    Raises:
        StoreBusyError: another process holds it.
        NotWrittenError: the lock file cannot be written.
    """

    def __init__(self, scratch: Path) -> None:
        self._path = scratch.with_name(f"{scratch.name}.lock")
        self._process = os.getpid()
        try:
            self._file = _hold(self._path, scratch)
        except OSError as error:
            if isinstance(error, StoreBusyError):
                raise
            advice = ADVICE.get(
                error.errno or 0, "let its folder be on a disk that this user can write"
            )
            raise NotWrittenError(
                self._path, f"cannot be written ({error.strerror}): {advice}"
            ) from error
        self._is_held = True

    def let_go(self) -> None:
        """Let others in; nothing is left beside the folder."""
        if self._is_held and self._process == os.getpid():
            self._path.unlink(missing_ok=True)
            self._file.close()
        self._is_held = False

    def __enter__(self) -> "ScratchLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
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


def _hold(path: Path, scratch: Path) -> IO[str]:
    """The lock file, held: by flock for as long as it is open, or by what it says."""
    file, is_new = _opened(path, scratch)
    try:
        if _flocked(file, scratch):
            _require_free(file, path, scratch)
            _held.add(file)
            return file
        file.close()
        if is_new:
            path.unlink()
        _claim(path, scratch)
    except BaseException:
        file.close()
        raise
    return file


def _opened(path: Path, scratch: Path) -> tuple[IO[str], bool]:
    """The lock file, and whether it was created here."""
    try:
        return path.open("x+"), True
    except FileExistsError:
        pass
    try:
        return path.open("r+"), False
    except FileNotFoundError:  # its holder has let go since
        raise _busy(scratch) from None


def _flocked(file: IO[str], scratch: Path) -> bool:
    """Lock an open file; False if its file system cannot."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(scratch) from None
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


def _require_free(file: IO[str], path: Path, scratch: Path) -> None:
    """Refuse a lock that was acquired by flock and keeps nobody out.

    It is of a file that was removed, or of one that names another holder.
    """
    if (owner := _owner(file.read())) and not _has_ended(owner):
        raise _busy_by(owner, path, scratch)
    # Who held it may have removed it since it was opened here; then it no longer keeps others out.
    if not _is_at(path, file):
        raise _busy(scratch)


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one at a path."""
    try:
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return True
        # Some network file systems number a file anew at each look. A word that is written into it
        # shows which it is.
        word = secrets.token_hex(8)
        file.seek(0)
        file.truncate()
        file.write(word)
        sync(file)
        return path.read_text() == word
    except FileNotFoundError:
        return False


def _claim(path: Path, scratch: Path) -> None:
    """Create a lock file that says who holds it; that of a process that has ended is replaced.

    Raises:
        StoreBusyError: another process holds it, or it cannot be known whether that has ended.
    """
    with suppress(FileExistsError):
        return _create(path)
    owner = _read_owner(path)
    if owner is None:
        time.sleep(MOMENT)  # its holder may just be writing it, or removing it
        owner = _read_owner(path)
    if owner is None or not _has_ended(owner):
        raise _busy_by(owner, path, scratch)
    # Several may see that it has ended. One of them gets the right to replace it, which is a lock
    # of its own name.
    right = path.with_name(f"{path.name}.{owner['word']}")
    _claim(right, scratch)
    try:
        if _read_owner(path) != owner:
            raise _busy(scratch)
        path.unlink()
        _create(path)
    except (FileExistsError, FileNotFoundError):
        raise _busy(scratch) from None
    finally:
        right.unlink()
    return None


def _create(path: Path) -> None:
    """Write who holds it into a lock file that must not be there yet."""
    with path.open("x") as file:
        try:
            file.write(json.dumps(_myself()))
            sync(file)
        except OSError:
            path.unlink()
            raise


def _myself() -> Owner:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "started": _started(pid),
        "since": time.time(),
        "word": secrets.token_hex(4),
    }


def _read_owner(path: Path) -> Owner | None:
    try:
        return _owner(path.read_text())
    except FileNotFoundError:
        return None


def _owner(content: str) -> Owner | None:
    """Who holds a lock file, by its content; None if it does not say."""
    try:
        owner = json.loads(content)
        return owner if isinstance(owner, dict) and owner.keys() == _myself().keys() else None
    except ValueError:
        return None


def _has_ended(owner: Owner) -> bool:
    """Whether a process of this machine has ended; False if that cannot be known."""
    if (owner["host"], owner["boot"]) != (socket.gethostname(), _boot()):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(owner["pid"])
    return started is not None and started != owner["started"]


def _boot() -> str:
    """This machine since its last start, and its name space of process numbers.

    A container has a name space of its own.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was.

    None if unknown; empty if the process has ended and only its exit status is unread.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def _busy(scratch: Path) -> StoreBusyError:
    return StoreBusyError(scratch, "is being written by another process: wait for it, or stop it")


def _busy_by(owner: Owner | None, path: Path, scratch: Path) -> StoreBusyError:
    if owner is None:
        if not path.exists():
            return _busy(scratch)
        return StoreBusyError(
            scratch,
            f"is locked by {path}, which does not say by which process: if none writes there, "
            f"remove {path}",
        )
    if (owner["host"], owner["boot"]) == (socket.gethostname(), _boot()):
        return StoreBusyError(
            scratch, f"is being written by process {owner['pid']}: wait for it, or stop it"
        )
    minutes = max(0, round((time.time() - owner["since"]) / 60))
    return StoreBusyError(
        scratch,
        f"is locked by process {owner['pid']} on {owner['host']} for {minutes} min: wait for it; "
        f"if it has ended, remove {path}",
    )
