"""Stage ``cache_logits``: one teacher answers on every training frame of all anatomies; its logits are stored."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from pipeline.inference import answers
from pipeline.machine import Machine
from pipeline.stopwatch import Stopwatch
from pipeline.training_errors import mendable
from stages.shared.console import progress, readable, say
from stages.shared.environment import say_environment, say_handover
from stages.shared.params import load_params
from stages.shared.paths import STORES, store
from stages.stores.plan import (
    StorePlan,
    finish,
    free_space,
    make_batches,
    make_plans,
    require_space,
    was_imported,
)
from stages.stores.quality import ask

SAMPLE_BATCHES = 3


@mendable("lower cache.batch_size, or choose another --device")
def run(
    anatomies: list[str], machine: Machine, *, estimate: bool = False, scheduler: str | None = None
) -> None:
    """Write the stores of some anatomies' teachers, of all that are here if none is named.

    Args:
        anatomies: whose teachers.
        machine: where to compute.
        estimate: only say what it would take.
        scheduler: address of a dask.distributed scheduler whose workers compute instead.
    """
    plans = make_plans(anatomies, load_params())
    if not anatomies:
        plans = [plan for plan in plans if not was_imported(plan)]
    if estimate:
        _estimate(plans, machine)
    elif scheduler is not None:
        from stages.stores.cluster import write_stores

        write_stores(plans, scheduler, machine)
    else:
        _say_environment(plans, machine)
        for plan in plans:
            _write_store(plan, machine)


def _say_environment(plans: Sequence[StorePlan], machine: Machine) -> None:
    say_environment(machine)
    if plans:
        height, width = plans[0].params.data.image_size
        say_handover(machine, lambda: plans[0].params.cache.batch_size * height * width * 3)


def _write_store(plan: StorePlan, machine: Machine) -> None:
    teacher, questions = plan.teacher(), plan.questions()
    grid, settings, stopwatch = plan.grid(teacher), plan.params.cache, Stopwatch()
    with plan.writer(grid) as writer, progress(f"{plan.anatomy}: frames asked") as bar:
        done = writer.next
        require_space(plan.raw_bytes(grid), done / len(questions), writer.bytes_written)
        batches = make_batches(
            len(plan.frames), len(questions), settings.shard_frames, settings.batch_size, done
        )
        answered = answers(teacher, questions, batches, settings.precision, machine, stopwatch)
        # Compressing and writing are another thread's, at most one batch behind.
        with ThreadPoolExecutor(1) as writing:
            behind: Future[None] | None = None
            for logits, pixels in answered:
                with stopwatch.step("writing"):
                    if behind is not None:
                        behind.result()
                behind = writing.submit(writer.append, logits[:, 0], pixels)
                done += len(pixels)
                bar(done, len(questions), f"{readable(writer.bytes_written)} written")
            if behind is not None:
                behind.result()
        writer.finish(store(plan.anatomy))
    finish(plan, teacher, machine)
    if stopwatch.seconds:
        say(f"{plan.anatomy}: time went to {stopwatch}")


def _estimate(plans: Sequence[StorePlan], machine: Machine) -> None:
    """Say what all stores will take, from a few batches of each teacher; refuse when the disk is too small."""
    total = 0
    for plan in plans:
        teacher = plan.teacher()
        questions = plan.questions()[: SAMPLE_BATCHES * plan.params.cache.batch_size]
        ask(
            teacher, questions[: plan.params.cache.batch_size], plan.params.cache, machine
        )  # a first call is slow
        start = perf_counter()
        ask(teacher, questions, plan.params.cache, machine)
        rate = len(questions) / (perf_counter() - start)
        size, count = plan.raw_bytes(plan.grid(teacher)), len(plan.questions())
        total += size
        say(
            f"{plan.anatomy}: {count} answers at {rate:.1f} frames/s, {_duration(count / rate)}; "
            f"{readable(size)} before compression"
        )
    require_space(total)
    say(f"all: {readable(total)} before compression; free: {readable(free_space(STORES))}")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
