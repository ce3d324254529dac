"""What goes wrong in a training run through no fault of its code, as one line each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import MtkdError

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
WORKER_DIED = re.compile(r"DataLoader worker .*(exited|killed)", re.DOTALL)
NO_SHARED_MEMORY = re.compile(
    r"shared memory ?\(shm\)|out of shared memory|shared memory segment|bus error|/dev/shm", re.IGNORECASE
)
PEER_GONE = re.compile(r"closed by peer|reset by peer|timed out waiting|remote process exited", re.IGNORECASE)


@contextmanager
def mendable() -> Iterator[None]:
    """Turn what a user can mend into an ``MtkdError``.

    Raises:
        MtkdError: no memory for the batch, or in /dev/shm for what processes share; a loader process or another
            training process that ended; what a loader process refused, without that process's traceback.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_little_memory() from error
    except MemoryError as error:
        raise _too_little_memory() from error
    except RuntimeError as error:
        text = str(error)
        if NO_MEMORY.search(text):
            raise _too_little_memory() from error
        if NO_SHARED_MEMORY.search(text):
            raise MtkdError(
                "/dev/shm has too little room for what processes share: start Docker with --shm-size=1g, or use "
                "--workers 0"
            ) from error
        if WORKER_DIED.search(text):
            reason = "a loader process ended by itself, as when the kernel needs its memory"
            raise MtkdError(f"{reason}: start again, with fewer --workers if it happens again") from error
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


def _too_little_memory() -> MtkdError:
    return MtkdError(
        "too little memory for this batch: --accumulate 2 computes it in two pieces; or lower batch_size, "
        "data.image_size, or use precision bf16-mixed"
    )
