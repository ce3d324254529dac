"""What goes wrong in a long run through no fault of its code, as one line each."""

import re
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from pipeline.environment import shared_memory
from pipeline.errors import MtkdError

NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|cannot allocate memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
WORKER_DIED = re.compile(r"DataLoader worker .*(exited|killed)", re.DOTALL)
NO_SHARED_MEMORY = re.compile(
    r"shared memory ?\(shm\)|out of shared memory|shared memory segment|bus error|/dev/shm", re.IGNORECASE
)
# gloo's words, the store's where processes meet, and NCCL's: of the call that failed, and of its watchdog.
PEER_GONE = re.compile(
    r"closed by (remote )?peer|reset by peer|timed out waiting|remote process exit|connection was likely closed"
    r"|ncclRemoteError|NCCL communicator was aborted|collective operation timeout",
    re.IGNORECASE,
)
TRAINING = (
    "--accumulate 2 computes a batch in two pieces; or lower batch_size, data.image_size, or use precision bf16-mixed"
)
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
        MtkdError: no memory in /dev/shm for what processes share; a loader process, one of a pool, or another training
            process that ended; what a loader process refused, without that process's traceback.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooLittleMemoryError(f"too little memory: {remedy}") from error
    except BrokenProcessPool as error:
        raise MtkdError(
            "a process of this work ended by itself, as when the kernel needs its memory: make room (fewer --workers "
            "need less), and start again"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if NO_MEMORY.search(text):
            raise TooLittleMemoryError(f"too little memory: {remedy}") from error
        if NO_SHARED_MEMORY.search(text):
            raise MtkdError(
                "/dev/shm has too little room for what processes share: start Docker with --shm-size=1g, or use "
                "--workers 0"
            ) from error
        if WORKER_DIED.search(text):
            reason = "a loader process ended by itself, as when the kernel needs its memory"
            raise MtkdError(f"{reason}: start again, with fewer --workers if it happens again{_shared()}") from error
        if PEER_GONE.search(text):
            raise MtkdError(
                "another process of this run ended first: its own line says why, if it was not killed"
            ) from error
        raise
    except Exception as error:
        # A loader process hands on its error with a traceback before the message.
        if not str(error).startswith("Caught "):
            raise
        raise MtkdError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error


def _shared() -> str:
    """What else to try, if what processes share may have been too small."""
    free = shared_memory()
    if free is None or free >= SMALL:
        return ""
    return f"; or start Docker with --shm-size=1g, as /dev/shm has only {free / 2**20:.0f} MiB free"
