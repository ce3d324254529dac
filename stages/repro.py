"""``mtkd repro``: ``dvc repro``, with teachers, stores and students side by side."""

from pipeline.errors import MtkdError
from pipeline.machine import Machine
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.side_by_side import repro, require_prepared, run_side_by_side, stale
from stages.shared.slots import slots


def run(project: Project, jobs: int | None, machine: Machine) -> None:
    """Run all stages that are not up to date.

    The last ones run alone, with all threads: they measure what a frame takes.

    Args:
        project: a project of DVC.
        jobs: how many stages at the same time; None for one per device.
        machine: the kind of device.

    Raises:
        MtkdError: stages that failed; the others of their step are done, and no later one is begun.
    """
    side_by_side = slots(jobs, machine.torch_device.type)
    require_prepared(project)
    steps = {
        "teachers": [f"train_teacher@{anatomy}" for anatomy in project.anatomies],
        "stores": [f"cache_logits@{anatomy}" for anatomy in project.anatomies],
        "students": ["train_student@baseline", "train_student@mtkd"],
    }
    for what, stages in steps.items():
        to_run = stale(project, stages)
        say(f"{what}: {len(to_run)} of {len(stages)} to make, {len(side_by_side)} at a time")
        run_side_by_side(project, to_run, side_by_side)
    if not repro(project):
        raise MtkdError("not all stages are done: the lines above say why")
