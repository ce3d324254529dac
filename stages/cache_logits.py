"""Stage ``cache_logits``: each teacher's logits on all training frames, in its store."""

from collections.abc import Sequence
from time import perf_counter

from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.training_errors import translated_errors
from stages.shared.console import readable, say
from stages.shared.project import Project
from stages.stores.local import write_local_stores
from stages.stores.plan import StorePlan, free_space, make_plans, require_space, was_imported
from stages.stores.quality import run_inference

SAMPLE_BATCHES = 3


@translated_errors()
def run(
    project: Project,
    anatomies: list[str],
    machine: Machine,
    *,
    estimate: bool = False,
    scheduler: str | None = None,
) -> None:
    """Write the stores of some anatomies' teachers, of all that are here if none is named.

    Args:
        project: settings, checkpoints and prepared frames.
        anatomies: whose teachers.
        machine: where to compute.
        estimate: only say what it would take.
        scheduler: address of a dask.distributed scheduler whose workers compute instead.
    """
    plans = make_plans(project, anatomies)
    if not anatomies:
        plans = [plan for plan in plans if not was_imported(plan)]
    if estimate:
        _estimate(project, plans, machine)
    elif scheduler is not None:
        from stages.stores.cluster import write_stores

        write_stores(plans, scheduler, machine)
    else:
        write_local_stores(plans, machine)


def _estimate(project: Project, plans: Sequence[StorePlan], machine: Machine) -> None:
    """Say what all stores will take, from a few batches of each teacher.

    Raises:
        MtkdError: the disk is too small for them.
    """
    total = 0
    for plan in plans:
        teacher = plan.teacher()
        inputs = plan.inputs()
        rate = _rate(plan, teacher, machine)
        size = plan.raw_bytes(plan.grid(teacher))
        total += size
        say(
            f"{plan.anatomy}: {len(inputs)} predictions at {rate:.1f} frames/s, "
            f"{_duration(len(inputs) / rate)}; {readable(size)} before compression"
        )
    require_space(project, total)
    free = free_space(project.stores)
    say(f"all: {readable(total)} before compression; free: {readable(free)}")


def _rate(plan: StorePlan, teacher: Network, machine: Machine) -> float:
    """Frames per second of a few batches, after one that does not count: a first call is slow."""
    settings = plan.params.cache
    sample = plan.inputs()[: SAMPLE_BATCHES * settings.batch_size]
    run_inference(teacher, sample[: settings.batch_size], settings, machine)
    start = perf_counter()
    run_inference(teacher, sample, settings, machine)
    return len(sample) / (perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
