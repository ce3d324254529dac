"""Writing a store: one way for all of them, wherever their logits come from."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import cache
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.prefetch import OneBehind
from pipeline.stopwatch import Stopwatch
from stages.shared.console import progress, readable, say
from stages.stores.plan import StorePlan, require_space
from stages.stores.quality import augmentation_gap, rounding_error

Prediction = tuple[NDArray[np.float32], list[int]]


class Predictions(Protocol):
    """Where a store's logits come from: a teacher here, a cluster, another store."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the logits."""

    def __call__(self, start: int) -> Iterator[Prediction]:
        """From a position of the store to its end, batch by batch.

        Args:
            start: the first position that is missing; positions count view by view.

        Yields:
            Logits (n, 2, h, w) of n positions, and the fingerprints of the pixels that they are of.
        """


def write_store(
    plan: StorePlan, predictions: Predictions, stopwatch: Stopwatch | None = None
) -> None:
    """Write what an earlier run left out of a store, and put it in its place.

    Compressing and writing are another thread's work, at most one batch behind.

    Args:
        plan: what the store will hold.
        predictions: the logits.
        stopwatch: counts the time that is spent waiting for the other thread.

    Raises:
        MtkdError: the disk has too little room, or cannot be written.
        StoreError: as of ``cache.create_store`` and its writer.
    """
    stopwatch = stopwatch or Stopwatch()
    raw_bytes = plan.raw_bytes(predictions.grid)
    with (
        plan.writer(predictions.grid) as writer,
        progress(f"{plan.anatomy}: frames stored") as bar,
        OneBehind() as thread,
    ):
        require_space(plan.project, raw_bytes, writer.next / writer.total, writer.bytes_written)
        done = writer.next
        for logits, pixels in predictions(done):
            with stopwatch.step("writing"):
                thread.begin(writer.append, logits, pixels)
            done += len(pixels)
            bar(done, writer.total, f"{readable(writer.bytes_written)} written")
        thread.wait()
        writer.finish(plan.path)


def write_metrics(plan: StorePlan, teacher: Network, machine: Machine) -> None:
    """Write what a finished store takes and what it loses, and say how large it is."""
    store = cache.open_store(plan.path)
    stats = cache.stats(plan.path)
    stats |= augmentation_gap(teacher, plan.frames, store, plan.params, machine)
    if plan.params.cache.keep_bits is not None:
        stats |= rounding_error(teacher, plan.frames, plan.params, machine)
    write_json(plan.metrics, stats)
    stored = stats["frames"] * stats["views"]
    say(f"{plan.anatomy}: {stored} predictions -> {plan.path}, {readable(stats['bytes'])}")
