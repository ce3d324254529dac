"""Stage ``train_teacher``: a network with one decoder, on one anatomy (paper, stage 1).

The paper's teachers see frames of their own anatomy alone. With ``teacher.negatives`` they also
learn from those of others that their anatomy is not where another one is, or is known to be absent.
"""

from pipeline.machine import Machine
from stages.shared.project import Project
from stages.shared.training_run import Lesson, Outputs, objective_on_labels, train_run


def run(project: Project, anatomy: str, machine: Machine) -> None:
    """Train the teacher of one anatomy."""
    project.require_anatomies([anatomy])
    settings = project.params.teacher
    every = project.frames_of("train")
    frames = [frame for frame in every if anatomy in frame.anatomies]
    lesson = Lesson(
        frames,
        objective_on_labels(frames, [anatomy], settings),
        validated_on=project.anatomies if settings.select_by == "known" else [anatomy],
        negatives=[f for f in every if anatomy not in f.anatomies] if settings.negatives else [],
        drawn=round(len(frames) * settings.negatives / (1 - settings.negatives)),
    )
    outputs = Outputs(
        checkpoint=project.teacher_checkpoint(anatomy),
        metrics=project.teacher_metrics(anatomy),
        curves=project.teacher_curves(anatomy),
    )
    train_run(project, f"teacher {anatomy}", [anatomy], settings, lesson, outputs, machine)
