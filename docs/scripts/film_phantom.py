"""Further frames of the phantom's training surgeries, without masks, like a hospital's video.

    python docs/scripts/film_phantom.py UNLABELLED FRAMES

writes FRAMES further frames per anatomy and surgery, as params.yaml describes the phantom. Then
``data.unlabelled_root: UNLABELLED`` shows what the same surgeries' video is worth.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import cv2
import shared
import typer

from pipeline.phantom import render
from pipeline.phantom.patient import ANATOMIES
from pipeline.settings import Phantom
from stages.shared.project import load_project


def main(unlabelled: Path, frames: Annotated[int, typer.Argument(min=1)]) -> None:
    """Write FRAMES frames per anatomy and training surgery of the phantom.

    They follow those of its data set.
    """
    shared.refuse_existing(unlabelled)
    data = load_project().params.data
    numbers = range(data.phantom.frames, data.phantom.frames + frames)
    for surgery in range(1, data.phantom.surgeries + 1):
        folder = unlabelled / f"{surgery:02d}"
        if data.splits.of(folder.name) != "train":
            continue
        folder.mkdir(parents=True)
        for anatomy, number in product(ANATOMIES, numbers):
            path = folder / f"{anatomy}_{number:02d}.png"
            _write(path, anatomy, surgery, number, data.phantom)
        print(f"{folder}: {frames * len(ANATOMIES)} frames")


def _write(path: Path, anatomy: str, surgery: int, number: int, phantom: Phantom) -> None:
    pixels, _ = render(
        anatomy,
        surgery,
        number,
        seed=phantom.seed,
        size=phantom.image_size,
        difficulty=phantom.difficulty,
    )
    cv2.imwrite(str(path), pixels[..., ::-1])


if __name__ == "__main__":
    shared.run(main)
