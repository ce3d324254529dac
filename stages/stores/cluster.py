"""``cache-logits --scheduler``: workers of a dask.distributed cluster infer, this process writes.

A task is one teacher on one shard of frames. A worker keeps its teacher from task to task and holds
one at a time. The logits come back here, where each store has its one writer: the same bytes as
without a cluster, and the same resume. Workers need this checkout's files (checkpoints and prepared
frames), on a shared file system or a copy of it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from distributed import Client, Future, KilledWorker, get_worker
from distributed.comm import CommClosedError

from cache import file_sha256
from pipeline.checkpoint import load_checkpoint
from pipeline.environment import loaders
from pipeline.errors import MtkdError
from pipeline.inference import InferenceInput, predictions
from pipeline.machine import Machine, keep_freed_memory
from pipeline.models.network import Network
from stages.shared.console import say
from stages.stores.plan import StorePlan
from stages.stores.writing import Prediction, write_metrics, write_store

# Shards that wait at each worker, so that none is idle while this process writes.
AHEAD = 2
PATIENCE = 60  # seconds between two looks whether there are workers at all


def write_stores(plans: Sequence[StorePlan], scheduler: str, machine: Machine) -> None:
    """Write the stores of all plans with the workers of a cluster.

    Raises:
        MtkdError: no scheduler answers there, it has no workers, it ended, or workers died again
            and again on a task.
    """
    try:
        client = Client(scheduler, timeout="10s")
    except ValueError as error:
        raise MtkdError(
            f"--scheduler {scheduler} is not an address such as tcp://HOST:8786: {error}"
        ) from error
    except (OSError, TimeoutError) as error:
        raise MtkdError(
            f"--scheduler {scheduler} does not answer: start one with `dask scheduler`"
        ) from error
    with client:
        count = _workers(client)
        if not count:
            raise MtkdError(
                f"--scheduler {scheduler} has no workers: start some with "
                f"`dask worker {scheduler} --nthreads 1`"
            )
        say(f"{scheduler}: {count} workers")
        try:
            for plan in plans:
                teacher = plan.teacher()
                write_store(plan, ClusterPredictions(plan, teacher, client))
                write_metrics(plan, teacher, machine)
        except (CancelledError, CommClosedError, KilledWorker) as error:
            died = isinstance(error, KilledWorker)
            reason = "workers died on one task again and again" if died else "it ended"
            raise MtkdError(
                f"--scheduler {scheduler}: {reason}; look at its log, then start again: whole "
                "shards are kept"
            ) from error


@dataclass(frozen=True)
class ClusterPredictions:
    """A teacher's logits, shard by shard, from the workers of a cluster.

    Attributes:
        plan: of which frames, in which shards.
        teacher: the same network as the workers load.
        client: of the cluster's scheduler.
    """

    plan: StorePlan
    teacher: Network
    client: Client

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the logits."""
        return self.plan.grid(self.teacher)

    def __call__(self, start: int) -> Iterator[Prediction]:
        """See :class:`stages.stores.writing.Predictions`.

        So many shards are begun ahead that no worker is idle and the memory bounded.
        """
        path = self.plan.checkpoint.resolve()
        checkpoint = (str(path), file_sha256(path))
        inputs = self.plan.inputs()
        shards = iter(self.plan.batches(start, self.plan.params.cache.shard_frames))
        begun: deque[Future[Prediction]] = deque()
        while True:
            room = AHEAD * max(1, _workers(self.client)) - len(begun)
            for shard in islice(shards, max(0, room)):
                begun.append(self._begin(checkpoint, [inputs[i] for i in shard]))
            if not begun:
                return
            yield _result(self.client, begun.popleft())

    def _begin(
        self, checkpoint: tuple[str, str], inputs: Sequence[InferenceInput]
    ) -> "Future[Prediction]":
        settings = self.plan.params.cache
        return self.client.submit(
            _infer,
            checkpoint,
            [_absolute(item) for item in inputs],
            settings.batch_size,
            settings.precision,
            pure=False,
            retries=3,
        )


def _workers(client: Client) -> int:
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _result(client: Client, begun: "Future[Prediction]") -> Prediction:
    """Wait for a shard, and say so if no worker is left to compute it."""
    while True:
        try:
            return begun.result(timeout=PATIENCE)
        except TimeoutError:
            if begun.done():  # the task's own error
                raise
            if not _workers(client):
                address = client.scheduler.address
                say(
                    f"no workers are left: waits for new ones, `dask worker {address} --nthreads 1`"
                )


def _absolute(item: InferenceInput) -> InferenceInput:
    """The same frame for a process in another folder."""
    frame = item.frame
    image = Path(frame.image).resolve()
    label = Path(frame.label).resolve()
    return replace(item, frame=replace(frame, image=image, label=label))


# A worker may have several threads. One computes at a time: the teacher that is held, and the kind
# of float32 products, are the whole process's.
_alone = Lock()
# The teacher that this worker holds: (file, sha256) and the network.
_held: tuple[tuple[str, str], Network] | None = None


def _infer(
    checkpoint: tuple[str, str], inputs: list[InferenceInput], batch_size: int, precision: str
) -> Prediction:
    """One teacher's logits of a shard of frames, on a worker."""
    starts = range(0, len(inputs), batch_size)
    batches = [range(i, min(i + batch_size, len(inputs))) for i in starts]
    with _alone:
        computed = predictions(_teacher(checkpoint), inputs, batches, precision, _machine())
        logits, pixels = zip(*computed, strict=True)
    return np.concatenate(logits)[:, 0], list(chain(*pixels))


def _teacher(checkpoint: tuple[str, str]) -> Network:
    """The teacher of a checkpoint (file, sha256), kept from task to task.

    Raises:
        MtkdError: the file on this worker is another.
    """
    global _held
    if _held is None or _held[0] != checkpoint:
        _held = None  # let go of the old one first
        path, expected = checkpoint
        if file_sha256(path) != expected:
            worker = get_worker().address
            raise MtkdError(
                f"{path} on {worker} is not the file that the client has: copy it there"
            )
        keep_freed_memory()
        _held = (checkpoint, load_checkpoint(Path(path))[0])
    return _held[1]


@cache
def _machine() -> Machine:
    """This worker's GPU and its share of the cores; else the CPU.

    By its place among the workers of its host. Found at the first task and kept: when another
    worker dies, the places of those that live change.
    """
    if not torch.cuda.is_available():
        return Machine("auto", 0)
    worker = get_worker()
    workers = worker.client.scheduler_info(n_workers=-1)["workers"]
    addresses = sorted(address for address, info in workers.items() if info["host"] == worker.ip)
    gpu = addresses.index(worker.address) % torch.cuda.device_count()
    return Machine(f"cuda:{gpu}", loaders(len(addresses)))
