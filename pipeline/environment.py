"""What the machine grants this process: cores, temporary files and shared memory.

Nothing here prints: a function returns a line for the screen, or raises.
"""

import getpass
import math
import multiprocessing
import multiprocessing.util
import os
import tempfile
import time
from multiprocessing.context import BaseContext
from pathlib import Path

from pipeline.errors import MtkdError

SHARED_MEMORY = Path("/dev/shm")
SOCKET_PATH = 103  # bytes that the path of a socket may have: 107 on Linux, 103 on macOS
# What multiprocessing appends.
SOCKET_FOLDER = "/pymp-xxxxxxxx"
SOCKET_NAME = "/listener-xxxxxxxx"
SHORT_FOLDERS = ("/tmp", "/var/tmp")
MOST_LOADERS = 8  # more than one GPU takes frames from
WINDOW = 0.3  # seconds in which the load of other programs is measured


def cores() -> int:
    """Processor cores that this process may use.

    By its affinity (taskset, SLURM) and its container's quota.
    """
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota())))


def loaders(processes: int) -> int:
    """Loader processes for each of so many processes that compute on GPUs side by side.

    As many as each has cores, at most 8.
    """
    return max(1, min(MOST_LOADERS, cores() // processes))


def _quota() -> float:
    """Cores that the container may use, as cgroup version 2 or 1 says; infinite without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        try:
            limit, period = (
                (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return math.inf
    return int(limit) / int(period) if limit.isdecimal() else math.inf


def busy_cores() -> float | None:
    """How many of this process's cores are busy with other programs.

    None where the system hides it. The load average is no measure of that: it holds what this run
    itself did in the last minute, in an earlier stage.
    """
    before = _processor_seconds()
    time.sleep(WINDOW)
    after = _processor_seconds()
    if before is None or after is None:
        return None
    others, wall = (after[i] - before[i] for i in range(2))
    return max(0.0, others / wall)


def _processor_seconds() -> tuple[float, float] | None:
    """Seconds that other programs computed on this process's cores, and the time of the clock."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = sum(_busy_ticks(line) for line in lines if line.partition(" ")[0] in allowed)
    this_process = os.times()
    others = ticks / os.sysconf("SC_CLK_TCK") - this_process.user - this_process.system
    return others, time.monotonic()


def _busy_ticks(line: str) -> int:
    """Of a core, in its line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, ..."""
    fields = line.split()
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7))


def load_warning(threads: int, workers: int = 0) -> str | None:
    """A line if fewer cores are free than this process computes on.

    Its limits leave some, and of these other programs leave some.

    Args:
        threads: that compute.
        workers: loader processes.
    """
    available = cores()
    if threads > max(1, available):
        return (
            f"{threads} threads compute on {_cores(available)}, which may take many times as "
            f"long: set OMP_NUM_THREADS={max(1, available)}"
        )
    busy = busy_cores()
    needed = threads + workers
    if busy is None or busy <= max(0.5, 0.1 * available) or busy + needed <= available + 0.5:
        return None
    left = max(1, int(available - busy - workers + 0.5))
    fix = "wait for them, or stop them"
    if left < threads:
        fix = f"set OMP_NUM_THREADS={left}, or wait"
    return (
        f"the machine is busy: other programs use {busy:.1f} of {_cores(available)}, and this one "
        f"would use {needed}; it may take many times as long: {fix}"
    )


def _cores(number: int) -> str:
    return f"{number} core{'s' * (number != 1)}"


def temporary_warning() -> str | None:
    """A line if temporary files do not go where the environment sends them.

    Raises:
        MtkdError: they can go nowhere.
    """
    try:
        used = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise MtkdError(
            "no folder for temporary files is writable: export TMPDIR=<a folder that is>"
        ) from error
    name = next((name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), None)
    if name is None or Path(used).absolute() == Path(os.environ[name]).absolute():
        return None
    wanted = Path(os.environ[name])
    if not wanted.exists():
        problem = "does not exist"
    elif not wanted.is_dir():
        problem = "is not a folder"
    else:
        problem = "is not writable, or full"
    return f"{name}={wanted} {problem}: temporary files go to {used}"


def name_user() -> None:
    """Give a name and a home to a user without an entry in /etc/passwd.

    As of ``docker run --user``; libraries ask for both.

    Raises:
        FileNotFoundError: no folder for temporary files is writable, to be the home.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()


def use_short_sockets() -> bool:
    """Give multiprocessing a folder whose path leaves room for the names of its sockets.

    It does so whatever TMPDIR says. Python 3.14 does so by itself.

    Returns:
        Whether there is such a folder.
    """
    for folder in (tempfile.gettempdir(), *SHORT_FOLDERS):
        if _leaves_room(folder + SOCKET_FOLDER) and os.access(folder, os.W_OK | os.X_OK):
            break
    else:
        return False
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        # It makes its folder once, keeps it, and hands it on to the processes that it starts.
        return _leaves_room(multiprocessing.util.get_temp_dir())
    finally:
        tempfile.tempdir = before


def _leaves_room(folder: str) -> bool:
    return len(os.fsencode(folder + SOCKET_NAME)) <= SOCKET_PATH


def shared_memory() -> int | None:
    """Free bytes of the memory that processes can share; None where it is not a file system."""
    try:
        space = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def require_semaphores(workers: int) -> None:
    """Processes that hand each other work need a little shared memory, however their data travels.

    Args:
        workers: loader processes, for training and as many for validation.

    Raises:
        MtkdError: they can't have it.
    """
    # A loader has three semaphores for each process and ten of its own, each a page of memory.
    count = 2 * (3 * workers + 10)
    try:
        held = [multiprocessing.get_context().Lock() for _ in range(count)]
    except OSError as error:
        raise MtkdError(
            f"{workers} loader processes need {count} semaphores in {SHARED_MEMORY}, which can't "
            f"be created ({error.strerror}): make room there, start Docker with --shm-size=1g, or "
            "use --workers 0"
        ) from error
    del held


def clean_processes(*modules: str) -> BaseContext:
    """For processes that begin without threads and without a GPU, unlike forks of this one.

    They come from a server that has imported ``modules`` once; each alone would take seconds for
    that. The server needs a socket, for which a long TMPDIR leaves no room: then each is alone.
    """
    if not use_short_sockets():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
