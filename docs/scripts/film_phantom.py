"""Frames of the phantom's training surgeries that its data set doesn't hold, without masks: what a hospital's video is.

    python docs/scripts/film_phantom.py UNLABELLED FRAMES

writes FRAMES further frames per anatomy and surgery, as params.yaml describes the phantom. Then
``data.unlabelled_root: UNLABELLED`` shows what the same surgeries' video is worth.
"""

from pathlib import Path
from typing import Annotated

import cv2
import shared
import typer

from pipeline.dsad import Splits
from pipeline.phantom import render
from pipeline.phantom.patient import ANATOMIES
from stages.shared.project import load_project


def main(unlabelled: Path, frames: Annotated[int, typer.Argument(min=1)]) -> None:
    """Write FRAMES frames per anatomy and training surgery of the phantom, which follow those of its data set."""
    shared.refuse_existing(unlabelled)
    data = load_project().params.data
    phantom, splits = data.phantom, Splits(tuple(data.splits.val), tuple(data.splits.test))
    for surgery in range(1, phantom.surgeries + 1):
        folder = unlabelled / f"{surgery:02d}"
        if splits.of(folder.name) != "train":
            continue
        folder.mkdir(parents=True)
        for anatomy in ANATOMIES:
            for frame in range(phantom.frames, phantom.frames + frames):
                pixels, _ = render(
                    anatomy,
                    surgery,
                    frame,
                    seed=phantom.seed,
                    size=phantom.image_size,
                    difficulty=phantom.difficulty,
                )
                cv2.imwrite(str(folder / f"{anatomy}_{frame:02d}.png"), pixels[..., ::-1])
        print(f"{folder}: {frames * len(ANATOMIES)} frames")


if __name__ == "__main__":
    shared.run(main)
