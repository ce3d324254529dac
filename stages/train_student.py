"""Stage ``train_student``: one encoder and N decoders, without (baseline) or with the teachers' stored logits (mtkd).

No teacher is built, loaded or held in memory here (paper, stage 2, done offline).
"""

from pathlib import Path
from typing import Any

from pipeline.machine import Machine
from pipeline.training import supervised
from stages.shared.project import Project
from stages.shared.training_run import class_weights, train_run


def run(project: Project, name: str, machine: Machine) -> None:
    """Train the student ``baseline`` or ``mtkd``."""
    params = project.params
    anatomies = project.anatomies
    frames = project.frames_of("train")
    weights = class_weights(frames, anatomies) if params.student.class_weights else None
    objective, soft_targets = supervised(len(anatomies), weights), None
    taught: dict[str, Any] = {}
    files: list[Path] = []
    if name == "mtkd":
        from pipeline.distillation import distilled
        from stages.stores.reader import open_stores

        objective, soft_targets = distilled(objective, params.distill), open_stores(project)
        frames = project.distillation_frames()
        taught = {
            "distill": params.distill.model_dump(),
            "stores": [one.identity for one in soft_targets.stores],
        }
        files = [
            file for one in soft_targets.stores for file in one.path.rglob("*") if file.is_file()
        ]
    train_run(
        project,
        f"student {name}",
        frames,
        anatomies,
        params.student,
        machine,
        objective,
        soft_targets=soft_targets,
        taught=taught,
        taught_by=files,
        checkpoint=project.student_checkpoint(name),
        metrics=project.student_metrics(name),
        curves=project.student_curves(name),
    )
