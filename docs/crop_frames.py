"""Crops of a data set's training frames, as frames without masks.

    python docs/crop_frames.py UNLABELLED CROPS [--mirror]

writes CROPS crops of every training frame of ``data.root`` in params.yaml, each of half of the frame's area up to all
of it. Then ``data.unlabelled_root: UNLABELLED`` lets teachers speak on views that go further than the training's
augmentation.
"""

from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import typer
from hide_masks import link

from pipeline.dsad import Source, Splits, scan
from stages.params import load_params


def main(folder: Path, crops: int, mirror: bool = False, masks: bool = False) -> None:
    """Write crops of the training frames, the same whenever it is run.

    With --mirror half of them are mirrored: right for streets, wrong for an abdomen, whose left is not its right.
    With --masks FOLDER becomes a data set, of all frames and of the crops with their masks: what crops teach labels.
    """
    if folder.exists():
        raise SystemExit(f"{folder} is there already: remove it, or name another folder")
    data = load_params().data
    splits = Splits(tuple(data.splits.val), tuple(data.splits.test))
    frames, problems = scan(Path(data.root), data.anatomies)
    if problems:
        raise SystemExit("\n".join(problems))
    flip, seed = A.HorizontalFlip(p=0.5 if mirror else 0.0), 0
    for frame in frames:
        if masks:
            for file in (frame.image, frame.mask):
                link(folder / frame.anatomy / frame.surgery / file.name, file)
        for number in range(crops if splits.of(frame.surgery) == "train" else 0):
            seed += 1
            _write_crop(frame, number, flip, seed, folder, masks)


def _write_crop(frame: Source, number: int, flip: A.HorizontalFlip, seed: int, root: Path, masks: bool) -> None:
    pixels, mask = cv2.imread(str(frame.image)), cv2.imread(str(frame.mask), cv2.IMREAD_GRAYSCALE)
    height, width = mask.shape
    crop = A.RandomResizedCrop(
        (height, width),
        scale=(0.5, 1.0),
        ratio=(width / height,) * 2,
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
    )
    cropped = A.Compose([crop, flip], seed=seed)(image=pixels, mask=mask)
    if masks:
        name = f"{int(frame.name.removeprefix('image')) + 100:03d}{number}"
        _write(root / frame.anatomy / frame.surgery / f"image{name}.png", cropped["image"])
        _write(root / frame.anatomy / frame.surgery / f"mask{name}.png", cropped["mask"])
    else:
        _write(root / frame.surgery / f"{frame.anatomy}_{frame.name}_{number:02d}.png", cropped["image"])


def _write(path: Path, pixels: np.ndarray) -> None:
    if path.exists():  # perhaps a link to a frame of the data set, which is not to be written to
        raise SystemExit(f"{path} is there already: a frame of the data set has this name")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


if __name__ == "__main__":
    typer.run(main)
