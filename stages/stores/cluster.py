"""``cache-logits --scheduler``: the workers of a dask.distributed cluster ask the teachers, this process writes.

A task is one teacher on one shard of frames. A worker keeps its teacher from task to task and holds
one at a time. The answers come back here, where each store has its one writer: the same bytes as
without a cluster, and the same resume. Workers need this checkout's files (checkpoints and prepared
frames), on a shared file system or a copy of it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client, Future, KilledWorker, get_worker
from distributed.comm import CommClosedError
from numpy.typing import NDArray

from cache import file_sha256
from pipeline.checkpoint import load_checkpoint
from pipeline.environment import loaders
from pipeline.errors import MtkdError
from pipeline.inference import Question, answers
from pipeline.machine import Machine, keep_freed_memory
from stages.shared.console import progress, readable, say
from stages.shared.paths import store, teacher_checkpoint
from stages.stores.plan import StorePlan, finish, make_batches, require_space

Answer = tuple[NDArray[np.float32], list[int]]
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
            f"--scheduler {scheduler} is no address such as tcp://HOST:8786: {error}"
        ) from error
    except (OSError, TimeoutError) as error:
        raise MtkdError(
            f"--scheduler {scheduler} does not answer: start one with `dask scheduler`"
        ) from error
    with client:
        count = _workers(client)
        if not count:
            raise MtkdError(
                f"--scheduler {scheduler} has no workers: start some with `dask worker {scheduler}`"
            )
        say(f"{scheduler}: {count} workers")
        try:
            for plan in plans:
                _write_store(plan, client, machine)
        except (CancelledError, CommClosedError, KilledWorker) as error:
            reason = (
                "workers died on one task again and again"
                if isinstance(error, KilledWorker)
                else "it ended"
            )
            raise MtkdError(
                f"--scheduler {scheduler}: {reason}; look at its log, then start again: whole "
                "shards are kept"
            ) from error


def _write_store(plan: StorePlan, client: Client, machine: Machine) -> None:
    teacher, questions = plan.teacher(), plan.questions()
    grid = plan.grid(teacher)
    with plan.writer(grid) as writer, progress(f"{plan.anatomy}: frames asked") as bar:
        require_space(plan.raw_bytes(grid), writer.next / len(questions), writer.bytes_written)
        shards = _shards(plan, len(questions), writer.next)
        for logits, pixels in _in_order(client, plan, questions, shards):
            writer.append(logits, pixels)
            bar(writer.next, len(questions), f"{readable(writer.bytes_written)} written")
        writer.finish(store(plan.anatomy))
    finish(plan, teacher, machine)


def _shards(plan: StorePlan, total: int, done: int) -> list[range]:
    """The shards that are missing, as runs of questions."""
    size = plan.params.cache.shard_frames
    return make_batches(len(plan.frames), total, size, size, done)


def _in_order(
    client: Client, plan: StorePlan, questions: list[Question], shards: list[range]
) -> Iterator[Answer]:
    """The answers shard by shard; some are asked ahead, so many that no worker is idle and the memory bounded."""
    path = teacher_checkpoint(plan.anatomy).resolve()
    teacher = (str(path), file_sha256(path))
    waiting: deque[Future[Answer]] = deque()
    todo = iter(shards)
    while True:
        room = AHEAD * max(1, _workers(client)) - len(waiting)
        for shard in islice(todo, max(0, room)):
            asked = [_absolute(questions[i]) for i in shard]
            settings = plan.params.cache
            waiting.append(
                client.submit(
                    _ask,
                    teacher,
                    asked,
                    settings.batch_size,
                    settings.precision,
                    pure=False,
                    retries=3,
                )
            )
        if not waiting:
            return
        yield _result(client, waiting.popleft())


def _workers(client: Client) -> int:
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _result(client: Client, asked: "Future[Answer]") -> Answer:
    """Wait for an answer, and say so if nobody is left to give it."""
    while True:
        try:
            return asked.result(timeout=PATIENCE)
        except TimeoutError:
            if not _workers(client):
                say(
                    "no workers are left: waits for new ones, `dask worker "
                    f"{client.scheduler.address}`"
                )


def _absolute(question: Question) -> Question:
    frame = question.frame
    paths = {"image": Path(frame.image).resolve(), "label": Path(frame.label).resolve()}
    return Question(type(frame)(**{**frame.__dict__, **paths}), question.augmentation)


# The teacher that this worker holds: (file, sha256) and the network.
_held: tuple[tuple[str, str], Any] | None = None


def _ask(
    teacher: tuple[str, str], questions: list[Question], batch_size: int, precision: str
) -> Answer:
    """One teacher's answers to a shard of questions, on a worker."""
    global _held
    if _held is None or _held[0] != teacher:
        _held = None  # let go of the old one first
        path, expected = teacher
        if file_sha256(path) != expected:
            raise MtkdError(
                f"{path} on {get_worker().address} is not the file that the client has: copy it "
                "there"
            )
        keep_freed_memory()
        _held = (teacher, load_checkpoint(Path(path), "train_teacher")[0])
    ranges = [
        range(i, min(i + batch_size, len(questions))) for i in range(0, len(questions), batch_size)
    ]
    logits, pixels = zip(*answers(_held[1], questions, ranges, precision, _machine()), strict=True)
    return np.concatenate(logits)[:, 0], [p for part in pixels for p in part]


@cache
def _machine() -> Machine:
    """The GPU of this worker, by its place among the workers of its host, and its share of the cores; else the CPU.

    Found at the first task and kept: when another worker dies, the places of those that live
    change.
    """
    if not torch.cuda.is_available():
        return Machine("auto", 0)
    worker = get_worker()
    known = worker.client.scheduler_info(n_workers=-1)["workers"]
    here = sorted(address for address, info in known.items() if info["host"] == worker.ip)
    gpu = here.index(worker.address) % torch.cuda.device_count()
    return Machine(f"cuda:{gpu}", loaders(len(here)))
