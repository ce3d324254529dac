"""Where everything lies. dvc.yaml names the same paths; a test holds the two together."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import MtkdError
from pipeline.files import nearest
from pipeline.prepared import Frame, list_frames, list_unlabelled

PHANTOM = Path("data/phantom")  # the embedded data
PREPARED_FRAMES = Path("data/prepared/frames")
PREPARED_LABELS = Path("data/prepared/labels")
STORES = Path("stores")
SCRATCH = Path("scratch")
METRICS = Path("metrics")
RESULTS = Path("results")
NO_UNLABELLED = "data/unlabelled"  # an empty folder of this repository
REPORT = Path("report/index.html")


def teacher_checkpoint(anatomy: str) -> Path:
    """The teacher of one anatomy."""
    return Path("checkpoints/teachers") / f"{anatomy}.safetensors"


def student_checkpoint(name: str) -> Path:
    """The student ``baseline`` or ``mtkd``."""
    return Path("checkpoints/students") / f"{name}.safetensors"


def store(anatomy: str) -> Path:
    """The logits of one anatomy's teacher."""
    return STORES / f"{anatomy}.zarr"


def frames_of(split: str, anatomies: Sequence[str]) -> list[Frame]:
    """The prepared frames of one split."""
    return list_frames(PREPARED_FRAMES, PREPARED_LABELS, split, anatomies)


def taught_frames(anatomies: Sequence[str]) -> list[Frame]:
    """What the teachers speak on: the training frames of all anatomies, then those without a label."""
    return frames_of("train", anatomies) + list_unlabelled(PREPARED_FRAMES)


def require_folder(output: Path) -> None:
    """That a folder to write in is there, or can be made.

    Raises:
        MtkdError: it, or one that it would lie in, is a file, or nothing can be written there.
    """
    there = nearest(output)
    if not there.is_dir():
        raise MtkdError(f"--output {output}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise MtkdError(
            f"--output {output}: nothing can be written to {there}; name another folder"
        )
