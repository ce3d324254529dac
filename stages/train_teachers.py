"""``mtkd train-teachers``: the stages of all teachers side by side, one process per device.

One ``dvc repro`` runs one stage after another; several, each of one stage, may run at the same
time. What they have done DVC knows, and gives the same checkpoints, as if it had run them one by
one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

from pipeline.errors import MtkdError
from pipeline.machine import Machine
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.slots import Slot, slots

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]
REPRO = [*DVC, "repro"]
STATUS = [*DVC, "status", "--json"]


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
    selected = list(anatomies or project.anatomies)
    side_by_side = slots(jobs, machine.torch_device.type)
    if not _repro(project, ["prepare"], {}):
        raise MtkdError("the frames are not prepared: the lines above say why")
    stale = _stale(project, selected)
    say(f"{len(stale)} of {len(selected)} teachers to train, {len(side_by_side)} at a time")
    free: Queue[Slot] = Queue()
    for slot in side_by_side:
        free.put(slot)

    def train(anatomy: str) -> bool:
        slot = free.get()
        try:
            return _repro(project, ["--single-item", f"train_teacher@{anatomy}"], slot)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(side_by_side)) as pool:
        done = list(pool.map(train, stale))
    failed = [anatomy for anatomy, well in zip(stale, done, strict=True) if not well]
    if failed:
        raise MtkdError(
            f"{len(failed)} of {len(stale)} teachers failed, the lines above say why: "
            f"{', '.join(failed)}"
        )
    say(f"{len(selected)} teachers are trained: `dvc repro` goes on from here")


def _stale(project: Project, anatomies: Sequence[str]) -> list[str]:
    """Those whose teacher is not the one of today's frames, labels, settings and code."""
    stages = {f"train_teacher@{anatomy}": anatomy for anatomy in anatomies}
    asked = subprocess.run(
        [*STATUS, *stages], cwd=project.root, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise MtkdError(f"dvc status: {asked.stderr.strip()}")
    changed = json.loads(asked.stdout)
    return [anatomy for stage, anatomy in stages.items() if stage in changed]


def _repro(project: Project, what: list[str], environment: dict[str, str]) -> bool:
    """Run DVC, and pass on what it says line by line: lines of several processes stay whole."""
    with subprocess.Popen(
        [*REPRO, *what],
        cwd=project.root,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                say(line.rstrip())
    return process.returncode == 0
