"""Stage ``train_teacher``: one network with one decoder on the sub-data set of one anatomy (paper, stage 1)."""

from pipeline.errors import MtkdError
from pipeline.machine import Machine
from pipeline.training import supervised
from stages.shared.params import load_params
from stages.shared.paths import METRICS, RESULTS, frames_of, teacher_checkpoint
from stages.shared.training_run import class_weights, train_run


def run(anatomy: str, machine: Machine) -> None:
    """Train the teacher of one anatomy."""
    params = load_params()
    if anatomy not in params.data.anatomies:
        raise MtkdError(f"'{anatomy}' is not in data.anatomies: {', '.join(params.data.anatomies)}")
    frames = frames_of("train", [anatomy])
    weights = class_weights(frames, [anatomy]) if params.teacher.class_weights else None
    train_run(
        f"teacher {anatomy}",
        frames,
        [anatomy],
        params.teacher,
        machine,
        supervised(1, weights),
        checkpoint=teacher_checkpoint(anatomy),
        metrics=METRICS / "teachers" / f"{anatomy}.json",
        curves=RESULTS / "curves" / "teachers" / anatomy,
    )
