"""What goes wrong in a long run through no fault of its code, as one line each."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.environment import shared_memory
from pipeline.errors import MtkdError, NotFiniteError, TooLittleMemoryError
from pipeline.machine import to_host

NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|cannot allocate memory"
    r"|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
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
    r"closed by (remote )?peer|reset by peer|timed out waiting|remote process exit"
    r"|connection was likely closed|ncclRemoteError|NCCL communicator was aborted"
    r"|collective operation timeout",
    re.IGNORECASE,
)
# Of a GPU, before anything was computed.
UNFIT = re.compile(
    r"CUDA error: (all CUDA-capable devices are busy|no kernel image|system not"
    r"|CUDA driver version is insufficient|initialization error|unknown error)"
)
SMALL = 2**30  # bytes of shared memory that a few loader processes may fill


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what a user can mend into an ``MtkdError``.

    Also a decorator of the function that does the work.

    Raises:
        TooLittleMemoryError: no memory for the batch.
        MtkdError: no memory in /dev/shm for what processes share; a loader process, one of a pool,
            or another training process that ended; a network that can't be compiled here; what a
            loader process refused, without that process's traceback.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooLittleMemoryError from error
    except BrokenProcessPool as error:
        raise MtkdError(
            "a process of this work ended by itself, as when the kernel needs its memory: "
            "make room (fewer --workers need less), and start again"
        ) from error
    except RuntimeError as error:
        translated = _translated(error)
        if translated is None:
            raise
        raise translated from error
    except Exception as error:
        # A loader process hands on its error with a traceback before the message.
        if not str(error).startswith("Caught "):
            raise
        raise MtkdError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error


def _translated(error: RuntimeError) -> MtkdError | None:
    """One of torch's many errors in one line; None for our own mistakes."""
    text = str(error)
    if NO_MEMORY.search(text):
        return TooLittleMemoryError()
    if NO_SHARED_MEMORY.search(text):
        return MtkdError(
            "/dev/shm has too little room for what processes share: start Docker with "
            "--shm-size=1g, or use --workers 0"
        )
    if WORKER_DIED.search(text):
        reason = "a loader process ended by itself, as when the kernel needs its memory"
        return MtkdError(
            f"{reason}: start again, with fewer --workers if it happens again"
            f"{_small_shared_memory()}"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = shorten(text, 200, placeholder=" ...")
        return MtkdError(f"torch.compile failed ({reason}): train without --compile (MTKD_COMPILE)")
    if UNFIT.search(text):
        reason = text.splitlines()[0].removeprefix("CUDA error: ")
        return MtkdError(
            f"the GPU can't be used ({reason}): another program may hold it, or this torch may not "
            "be built for it; nvidia-smi shows both. Without a GPU: --device cpu"
        )
    if PEER_GONE.search(text):
        return MtkdError(
            "another process of this run ended first: its own line says why, if it was not killed"
        )
    return None


def _small_shared_memory() -> str:
    """What else to try, if what processes share may have been too small."""
    free = shared_memory()
    if free is None or free >= SMALL:
        return ""
    return f"; or start Docker with --shm-size=1g, as /dev/shm has only {free / 2**20:.0f} MiB free"


class FiniteTerms:
    """Refuses terms of the loss that are not finite, one step late.

    To see them at once, the host would have to wait. Nothing is lost by that: a run is kept at the
    end of an epoch, when all its steps have been judged.

    Args:
        names: of the terms to judge.
        anatomies: one for each of the N values of a term.
        epoch: 0, 1, ...
        speaks: whether this process says what is wrong; the others only end.
    """

    def __init__(
        self, names: Iterable[str], anatomies: Sequence[str], epoch: int, *, speaks: bool
    ) -> None:
        self.names = list(names)
        self.anatomies = anatomies
        self.epoch = epoch
        self.speaks = speaks
        self._waiting: tuple[int, Callable[[], NDArray[Any]]] | None = None

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Judge the step before; take the terms (N,) of step 1, 2, ... for the next time.

        Raises:
            NotFiniteError: a term of the step before is not finite.
        """
        self.judge()
        self._waiting = step, to_host(torch.stack([terms[name] for name in self.names]))

    def judge(self) -> None:
        """Judge what was added last.

        Raises:
            NotFiniteError: a term of it is not finite.
            SystemExit: likewise, in processes that do not speak.
        """
        if self._waiting is None:
            return
        step, arrived = self._waiting
        self._waiting = None
        not_finite: dict[str, list[str]] = {}
        for name, values in zip(self.names, arrived().tolist(), strict=True):
            if anatomies := self._not_finite(values):
                not_finite[name] = anatomies
        if not not_finite:
            return
        if not self.speaks:
            raise SystemExit(1)
        terms = " and the ".join(
            f"{name} is not finite ({', '.join(anatomies)})"
            for name, anatomies in not_finite.items()
        )
        raise NotFiniteError(
            f"the {terms} in epoch {self.epoch + 1}, step {step}", list(not_finite)
        )

    def _not_finite(self, values: Sequence[float]) -> list[str]:
        """The anatomies whose value of a term is not finite."""
        pairs = zip(self.anatomies, values, strict=True)
        return [anatomy for anatomy, value in pairs if not math.isfinite(value)]
