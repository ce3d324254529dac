"""What goes wrong in a long run through no fault of its code, as one line each."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.environment import shared_memory
from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.machine import to_host

NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|cannot allocate "
    r"memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
WORKER_DIED = re.compile(r"DataLoader worker .*(exited|killed)", re.DOTALL)
NO_SHARED_MEMORY = re.compile(
    r"shared memory ?\(shm\)|out of shared memory|shared memory segment|bus error|/dev/shm",
    re.IGNORECASE,
)
# gloo's words, the store's where processes meet, and NCCL's: of the call that failed, and of its
# watchdog.
PEER_GONE = re.compile(
    r"closed by (remote )?peer|reset by peer|timed out waiting|remote process exit|connection was "
    r"likely closed"
    r"|ncclRemoteError|NCCL communicator was aborted|collective operation timeout",
    re.IGNORECASE,
)
TRAINING = "--accumulate 2 computes a batch in two pieces; or lower batch_size, data.image_size, or use precision bf16-mixed"
# The class of a loader process's error, and its message, which follows the last line of a traceback.
OF_LOADER = re.compile(r"Caught (\w+) .*\b\1: (.*?)\s*\Z", re.DOTALL)
SMALL = 2**30  # bytes of shared memory that a few loader processes may fill


class TooLittleMemoryError(MtkdError):
    """The device, or the machine, has too little memory for the work."""


@contextmanager
def mendable(remedy: str = TRAINING) -> Iterator[None]:
    """Turn what a user can mend into an ``MtkdError``; also a decorator of the function that does the work.

    Args:
        remedy: what to do where memory is too little; by default what helps a training.

    Raises:
        TooLittleMemoryError: no memory for the batch.
        MtkdError: no memory in /dev/shm for what processes share; a loader process, one of a pool,
            or another training process that ended; a network that can't be compiled here; what a
            loader process refused, without that process's traceback.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooLittleMemoryError(f"too little memory: {remedy}") from error
    except BrokenProcessPool as error:
        raise MtkdError(
            "a process of this work ended by itself, as when the kernel needs its memory: make "
            "room (fewer --workers "
            "need less), and start again"
        ) from error
    except RuntimeError as error:
        explained = _explained(error, remedy)
        if explained is None:
            raise
        raise explained from error
    except Exception as error:
        refused = _of_loader(error)
        if refused is None:
            raise
        raise refused from error


def _of_loader(error: Exception) -> MtkdError | None:
    """What a loader process refused, if it is that: torch hands on a text, after a traceback."""
    match = OF_LOADER.match(str(error))
    if match is None:
        return None
    kind, text = match.groups()
    if kind == "MissingFileError":
        return MissingFileError(Path(text.partition(" is missing")[0]))
    if kind == "DamagedFileError":
        path, _, reason = text.partition(" is damaged: ")
        return DamagedFileError(Path(path), reason)
    return MtkdError(text)


def _explained(error: RuntimeError, remedy: str) -> MtkdError | None:
    """One of torch's many errors in one line; None for our own mistakes."""
    text = str(error)
    if text.startswith("Caught DamagedFileError "):  # torch makes no error of two arguments anew
        return _of_loader(error)
    if NO_MEMORY.search(text):
        return TooLittleMemoryError(f"too little memory: {remedy}")
    if NO_SHARED_MEMORY.search(text):
        return MtkdError(
            "/dev/shm has too little room for what processes share: start Docker with "
            "--shm-size=1g, or use --workers 0"
        )
    if WORKER_DIED.search(text):
        reason = "a loader process ended by itself, as when the kernel needs its memory"
        return MtkdError(
            f"{reason}: start again, with fewer --workers if it happens again{_shared()}"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = shorten(text, 200, placeholder=" ...")
        return MtkdError(f"torch.compile failed ({reason}): train without --compile (MTKD_COMPILE)")
    if PEER_GONE.search(text):
        return MtkdError(
            "another process of this run ended first: its own line says why, if it was not killed"
        )
    return None


def _shared() -> str:
    """What else to try, if what processes share may have been too small."""
    free = shared_memory()
    if free is None or free >= SMALL:
        return ""
    return f"; or start Docker with --shm-size=1g, as /dev/shm has only {free / 2**20:.0f} MiB free"


class FiniteTerms:
    """Refuses terms of the loss that are not finite, one step late: to see them at once, the host would have to wait.

    Nothing is lost by that: a run is kept at the end of an epoch, when all its steps have been
    judged.

    Args:
        names: of the terms to judge.
        anatomies: one for each of the N values of a term.
        epoch: 0, 1, ...
        speaks: whether this process says what is wrong; the others only end.
    """

    def __init__(
        self, names: Iterable[str], anatomies: Sequence[str], epoch: int, *, speaks: bool
    ) -> None:
        self.names, self.anatomies, self.epoch, self.speaks = list(names), anatomies, epoch, speaks
        self._waiting: tuple[int, Callable[[], NDArray[Any]]] | None = None

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Judge the step before; take the terms (N,) of step 1, 2, ... for the next time.

        Raises:
            MtkdError: a term of the step before is not finite.
        """
        self.judge()
        self._waiting = step, to_host(torch.stack([terms[name] for name in self.names]))

    def judge(self) -> None:
        """Judge what was added last.

        Raises:
            MtkdError: a term of it is not finite.
            SystemExit: likewise, in processes that do not speak.
        """
        if self._waiting is None:
            return
        (step, arrived), self._waiting = self._waiting, None
        lost = {
            name: [
                a
                for a, value in zip(self.anatomies, values, strict=True)
                if not math.isfinite(value)
            ]
            for name, values in zip(self.names, arrived().tolist(), strict=True)
        }
        which = " and the ".join(
            f"{name} is not finite ({', '.join(whose)})" for name, whose in lost.items() if whose
        )
        if which and not self.speaks:
            raise SystemExit(1)
        if which:
            stores = (
                ""
                if lost.get("cross_entropy")
                else "; `mtkd cache verify` says whether the stored logits are whole"
            )
            where = f"in epoch {self.epoch + 1}, step {step}"
            raise MtkdError(
                f"the {which} {where}: lower learning_rate, or use precision 32-true{stores}"
            )
