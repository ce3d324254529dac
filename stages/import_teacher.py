"""``mtkd import-teacher``: a teacher that was trained elsewhere takes the place of one that would be trained here."""

import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import write_json
from stages.console import say
from stages.layout import METRICS, RESULTS, teacher_checkpoint
from stages.params import load_params


def run(anatomy: str, source: Path) -> None:
    """Put a checkpoint in the place of one teacher's, and have DVC take the stage that trains it for done.

    Args:
        anatomy: one of data.anatomies.
        source: a checkpoint (``.safetensors``) of this project with one decoder, trained at data.image_size.

    Raises:
        MtkdError: the anatomy is unknown, the file is no such checkpoint, or this is no project of DVC.
    """
    params = load_params()
    if anatomy not in params.data.anatomies:
        raise MtkdError(f"'{anatomy}' is not in data.anatomies: {', '.join(params.data.anatomies)}")
    if not source.is_file():
        raise MtkdError(f"{source} is no file: give a checkpoint (.safetensors) of this project")
    network, card = load_checkpoint(source, f"train_teacher@{anatomy}")
    if network.decoders != 1 or card.image_size != params.data.image_size:
        raise MtkdError(
            f"{source} has {network.decoders} decoders and was trained at {card.image_size}; "
            f"a teacher has one, and data.image_size is {params.data.image_size}"
        )
    network.anatomies = (anatomy,)
    target = teacher_checkpoint(anatomy)
    target.unlink(missing_ok=True)  # DVC may have linked it to its own copy
    save_checkpoint(target, network, card.image_size)
    # The stage's other outputs, which nobody can know from a checkpoint.
    write_json(METRICS / "teachers" / f"{anatomy}.json", {"val_dice": {"mean": None}, "imported": source.name})
    curves = RESULTS / "curves" / "teachers" / anatomy
    shutil.rmtree(curves, ignore_errors=True)
    curves.mkdir(parents=True)
    (curves / "imported.tsv").write_text("step\n")
    _commit(f"train_teacher@{anatomy}")
    say(f"{target}: imported from {source}; next: `dvc repro`, which asks it and trains the student, but not it")


def _commit(stage: str) -> None:
    """Tell DVC that the outputs on disk are the stage's."""
    done = subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", stage], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MtkdError(
            f"dvc commit {stage} failed ({lines[0]}): run it yourself, or `dvc repro` trains a teacher again"
        )
