"""Crops of a data set's training frames, as frames without masks.

    python docs/scripts/crop_frames.py UNLABELLED CROPS [--mirror]

writes CROPS crops of every training frame of ``data.root`` in params.yaml, each of half of the
frame's area up to all of it. With ``data.unlabelled_root: UNLABELLED`` teachers then segment views
that go further than the training's augmentation.
"""

from pathlib import Path
from typing import Annotated

import albumentations as A
import cv2
import numpy as np
import shared
import typer
from numpy.typing import NDArray

from pipeline.dsad import DataError, Source, read_frame, read_mask, scan
from pipeline.errors import MtkdError
from stages.shared.console import progress, say
from stages.shared.project import load_project


def main(
    folder: Path,
    crops: Annotated[int, typer.Argument(min=1)],
    mirror: bool = False,
    masks: bool = False,
) -> None:
    """Write crops of the training frames, the same whenever it is run.

    With --mirror half of them are mirrored: right for streets, wrong for an abdomen, whose left is
    not its right. With --masks FOLDER becomes a data set, of all frames and of the crops with their
    masks, to compare what they bring to labels.
    """
    shared.refuse_existing(folder)
    data = load_project().params.data
    frames, problems = scan(Path(data.root), data.anatomies)
    if problems:
        raise DataError(problems)
    training = [frame for frame in frames if data.splits.of(frame.surgery) == "train"]
    if masks:
        for frame in frames:
            shared.link_labelled(folder, frame)
    flip = A.HorizontalFlip(p=0.5 if mirror else 0.0)
    with progress("frames") as bar:
        for done, frame in enumerate(training):
            bar(done, len(training))
            _write_crops(frame, range(done * crops, (done + 1) * crops), flip, folder, masks)
    say(f"{folder}: {crops} crops of each of {len(training)} training frames")


def _write_crops(
    frame: Source, seeds: range, flip: A.HorizontalFlip, root: Path, masks: bool
) -> None:
    assert frame.mask is not None
    pixels = read_frame(frame.image)
    mask, _ = read_mask(frame.mask)
    height, width = mask.shape
    crop = A.RandomResizedCrop(
        (height, width),
        scale=(0.5, 1.0),
        ratio=(width / height,) * 2,
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
    )
    for number, seed in enumerate(seeds):
        cropped = A.Compose([crop, flip], seed=seed + 1)(
            image=pixels, mask=mask.astype(np.uint8) * 255
        )
        image = cropped["image"][..., ::-1]
        if masks:
            name = f"{int(frame.name.removeprefix('image')) + 100:03d}{number}"
            _write(root / frame.anatomy / frame.surgery / f"image{name}.png", image)
            _write(root / frame.anatomy / frame.surgery / f"mask{name}.png", cropped["mask"])
        else:
            _write(root / frame.surgery / f"{frame.anatomy}_{frame.name}_{number:02d}.png", image)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    if path.exists():  # perhaps a link to a frame of the data set, which is not to be written to
        raise MtkdError(f"{path} already exists: a frame of the data set has this name")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


if __name__ == "__main__":
    shared.run(main)
