"""Stage ``train_teacher``: a network with one decoder, on one anatomy (paper, stage 1)."""

from pipeline.machine import Machine
from pipeline.training import supervised
from stages.shared.project import Project
from stages.shared.training_run import Lesson, Outputs, class_weights, train_run


def run(project: Project, anatomy: str, machine: Machine) -> None:
    """Train the teacher of one anatomy."""
    project.require_anatomies([anatomy])
    settings = project.params.teacher
    frames = project.frames_of("train", [anatomy])
    weights = class_weights(frames, [anatomy]) if settings.class_weights else None
    lesson = Lesson(frames, supervised(1, weights))
    outputs = Outputs(
        checkpoint=project.teacher_checkpoint(anatomy),
        metrics=project.teacher_metrics(anatomy),
        curves=project.teacher_curves(anatomy),
    )
    train_run(project, f"teacher {anatomy}", [anatomy], settings, lesson, outputs, machine)
