"""Crops of a data set's training frames, half of them mirrored, as frames without masks.

    python docs/crop_frames.py UNLABELLED CROPS

writes CROPS crops of every training frame of ``data.root`` in params.yaml, each of half of the frame's area up to all
of it. Then ``data.unlabelled_root: UNLABELLED`` lets teachers speak on views that go further than the training's
augmentation. Mirroring suits streets; in an abdomen, left is not right.
"""

import sys
from pathlib import Path

import albumentations as A
import cv2

from pipeline.dsad import Splits, scan
from stages.params import load_params


def main(unlabelled: Path, crops: int) -> None:
    """A data set gives the same crops whenever it is run."""
    data = load_params().data
    splits = Splits(tuple(data.splits.val), tuple(data.splits.test))
    frames, _ = scan(Path(data.root), data.anatomies)
    mirror, seed = A.HorizontalFlip(), 0
    for frame in (frame for frame in frames if splits.of(frame.surgery) == "train"):
        pixels = cv2.imread(str(frame.image))
        height, width = pixels.shape[:2]
        crop = A.RandomResizedCrop((height, width), scale=(0.5, 1.0), ratio=(width / height,) * 2)
        for number in range(crops):
            seed += 1
            path = unlabelled / frame.surgery / f"{frame.anatomy}_{frame.name}_{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), A.Compose([crop, mirror], seed=seed)(image=pixels)["image"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
