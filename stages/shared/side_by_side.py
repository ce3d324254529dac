"""Stages of DVC side by side, each in a process of its own.

One ``dvc repro`` runs one stage after another; several, each of one stage, may run at the same
time. What they have done DVC knows, as if it had run them one by one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

from pipeline.errors import MtkdError
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.slots import Slot

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]


def repro(project: Project, *arguments: str, environment: Slot | None = None) -> bool:
    """Run ``dvc repro`` to its end, and pass on what it says line by line.

    Lines of several processes stay whole.

    Args:
        project: a project of DVC.
        arguments: of ``dvc repro``.
        environment: variables of the process.

    Returns:
        Whether it went well.
    """
    with subprocess.Popen(
        [*DVC, "repro", *arguments],
        cwd=project.root,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                say(line.rstrip())
    return process.returncode == 0


def require_prepared(project: Project) -> None:
    """Bring the prepared frames up to date.

    Raises:
        MtkdError: that failed.
    """
    if not repro(project, "prepare"):
        raise MtkdError("the frames are not prepared: the lines above say why")


def stale(project: Project, stages: Sequence[str]) -> list[str]:
    """Which of these stages ``dvc repro`` would run.

    Raises:
        MtkdError: DVC cannot say.
    """
    asked = subprocess.run(
        [*DVC, "status", "--json", *stages],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise MtkdError(f"dvc status: {asked.stderr.strip()}")
    changed: Collection[str] = json.loads(asked.stdout)
    return [stage for stage in stages if stage in changed]


def run_side_by_side(project: Project, stages: Sequence[str], slots: Sequence[Slot]) -> None:
    """Run stages whose dependencies are there, as many at a time as there are slots.

    Args:
        project: a project of DVC.
        stages: none of which depends on another.
        slots: the environment of each process.

    Raises:
        MtkdError: stages that failed; the others are done.
    """
    free: Queue[Slot] = Queue()
    for slot in slots:
        free.put(slot)

    def run(stage: str) -> bool:
        slot = free.get()
        try:
            return repro(project, "--single-item", stage, environment=slot)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        done = list(pool.map(run, stages))
    failed = [stage for stage, well in zip(stages, done, strict=True) if not well]
    if failed:
        raise MtkdError(
            f"{len(failed)} of {len(stages)} stages failed, the lines above say why: "
            f"{', '.join(failed)}"
        )
