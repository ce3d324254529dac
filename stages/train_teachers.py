"""``mtkd train-teachers``: the stages of all teachers side by side, one process per device."""

from collections.abc import Sequence

from pipeline.machine import Machine
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.side_by_side import require_prepared, run_side_by_side, stale
from stages.shared.slots import slots


def run(project: Project, anatomies: Sequence[str], jobs: int | None, machine: Machine) -> None:
    """Train the teachers that are not up to date.

    Args:
        project: a project of DVC.
        anatomies: whose; all if none is named.
        jobs: how many at the same time; None for one per device.
        machine: the kind of device.

    Raises:
        MtkdError: an unknown anatomy, or teachers that failed; the others are done.
    """
    project.require_anatomies(anatomies)
    side_by_side = slots(jobs, machine.torch_device.type)
    require_prepared(project)
    stages = [f"train_teacher@{anatomy}" for anatomy in anatomies or project.anatomies]
    to_train = stale(project, stages)
    say(f"{len(to_train)} of {len(stages)} teachers to train, {len(side_by_side)} at a time")
    run_side_by_side(project, to_train, side_by_side)
    say(f"{len(stages)} teachers are trained: `dvc repro` goes on from here")
