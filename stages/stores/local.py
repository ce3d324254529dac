"""Logits of teachers in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.inference import predictions
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.stopwatch import Stopwatch
from stages.shared.console import say
from stages.shared.environment import say_environment, say_handover
from stages.stores.plan import StorePlan
from stages.stores.writing import Prediction, write_metrics, write_store


@dataclass(frozen=True)
class LocalPredictions:
    """A teacher's logits, batch by batch.

    Attributes:
        plan: of which frames, and in which batches.
        teacher: in eval mode.
        machine: where it computes.
        stopwatch: counts what the time goes to.
    """

    plan: StorePlan
    teacher: Network
    machine: Machine
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the logits."""
        return self.plan.grid(self.teacher)

    def __call__(self, start: int) -> Iterator[Prediction]:
        """See :class:`stages.stores.writing.Predictions`."""
        settings = self.plan.params.cache
        batches = self.plan.batches(start, settings.batch_size)
        computed = predictions(
            self.teacher,
            self.plan.inputs(),
            batches,
            settings.precision,
            self.machine,
            self.stopwatch,
        )
        return ((logits[:, 0], pixels) for logits, pixels in computed)


def write_local_stores(plans: Sequence[StorePlan], machine: Machine) -> None:
    """Write stores one after another, each by its teacher in this process.

    Raises:
        MtkdError: a teacher is missing or another's; a disk is too small or cannot be written.
        StoreError: as of ``cache.create_store`` and its writer.
    """
    say_environment(machine)
    if plans:
        say_handover(machine, lambda: _batch_bytes(plans[0]))
    for plan in plans:
        predictions = LocalPredictions(plan, plan.teacher(), machine)
        write_store(plan, predictions, predictions.stopwatch)
        write_metrics(plan, predictions.teacher, machine)
        if predictions.stopwatch.seconds:
            say(f"{plan.anatomy}: time went to {predictions.stopwatch}")


def _batch_bytes(plan: StorePlan) -> int:
    """What a loader process loads at once."""
    height, width = plan.params.data.image_size
    return plan.params.cache.batch_size * height * width * 3
