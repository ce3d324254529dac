"""Crops of a data set's training frames, as frames without masks.

    python docs/crop_frames.py UNLABELLED CROPS [--mirror]

writes CROPS crops of every training frame of ``data.root`` in params.yaml, each of half of the frame's area up to all
of it. Then ``data.unlabelled_root: UNLABELLED`` lets teachers speak on views that go further than the training's
augmentation.
"""

from pathlib import Path

import albumentations as A
import cv2
import typer

from pipeline.dsad import Splits, scan
from stages.params import load_params


def main(unlabelled: Path, crops: int, mirror: bool = False) -> None:
    """Write crops of the training frames, the same whenever it is run.

    With --mirror half of them are mirrored: right for streets, wrong for an abdomen, whose left is not its right.
    """
    data = load_params().data
    splits = Splits(tuple(data.splits.val), tuple(data.splits.test))
    frames, problems = scan(Path(data.root), data.anatomies)
    if problems:
        raise SystemExit("\n".join(problems))
    flip, seed = A.HorizontalFlip(p=0.5 if mirror else 0.0), 0
    for frame in (frame for frame in frames if splits.of(frame.surgery) == "train"):
        pixels = cv2.imread(str(frame.image))
        height, width = pixels.shape[:2]
        crop = A.RandomResizedCrop((height, width), scale=(0.5, 1.0), ratio=(width / height,) * 2)
        for number in range(crops):
            seed += 1
            path = unlabelled / frame.surgery / f"{frame.anatomy}_{frame.name}_{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), A.Compose([crop, flip], seed=seed)(image=pixels)["image"])


if __name__ == "__main__":
    typer.run(main)
