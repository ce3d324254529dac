"""Stage ``train_student``: one encoder and N decoders, with or without the teachers' logits.

``mtkd`` is distilled from the stored logits, ``baseline`` is not. No teacher is built, loaded or
held in memory here (paper, stage 2, done offline).
"""

from pipeline.machine import Machine
from pipeline.prepared import frames_digest
from pipeline.training import Objective
from stages.shared.project import Project
from stages.shared.training_run import Lesson, Outputs, objective_on_labels, train_run


def run(project: Project, name: str, machine: Machine) -> None:
    """Train the student ``baseline`` or ``mtkd``."""
    anatomies = project.anatomies
    settings = project.params.student
    frames = project.frames_of("train")
    objective = objective_on_labels(frames, anatomies, settings)
    lesson = (
        _distillation(project, objective)
        if name == "mtkd"
        else Lesson(frames, objective, anatomies)
    )
    outputs = Outputs(
        checkpoint=project.student_checkpoint(name),
        metrics=project.student_metrics(name),
        curves=project.student_curves(name),
    )
    train_run(project, f"student {name}", anatomies, settings, lesson, outputs, machine)


def _distillation(project: Project, objective: Objective) -> Lesson:
    """All training frames, and the stored logits of all teachers on them.

    Raises:
        MtkdError: as of ``open_stores``.
        StoreError: likewise.
    """
    from pipeline.distillation import distilled
    from stages.stores.reader import open_stores

    settings = project.params.distill
    objective = distilled(objective, settings)
    frames = project.distillation_frames()
    digest = frames_digest(frames)
    soft_targets = open_stores(project, digest)
    identities = [store.identity for store in soft_targets.stores]
    return Lesson(
        frames,
        objective,
        project.anatomies,
        soft_targets=soft_targets,
        identity={"distill": settings.model_dump(), "stores": identities},
        files=soft_targets.files(),
        digest=digest,
    )
