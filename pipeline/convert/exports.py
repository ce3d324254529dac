"""Predictions as COCO and nnU-Net folders, for an annotator who corrects them.

Both hold the frames too: CVAT and nnU-Net need them beside the labels. ``mtkd convert`` reads both
back.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.convert.plans import Mask
from pipeline.files import write_atomically, write_json
from pipeline.png_files import write_png

SUBSET = "default"  # CVAT's name where a task has no subsets
INSTANCES = f"annotations/instances_{SUBSET}.json"


class Export(Protocol):
    """A folder that is written frame by frame."""

    def files(self, place: str) -> list[Path]:
        """The files of a frame; its place is its path without a suffix, such as ``01/image03``."""

    def write(self, place: str, pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> None:
        """Write a frame (H, W, 3) RGB and its masks (N, H, W)."""

    def close(self) -> None:
        """Write what describes all frames."""


class CocoExport:
    """CVAT's COCO layout: ``images/default/<place>.png`` and one file of annotations.

    Each mask is one annotation of run lengths, with ``iscrowd`` 1, which CVAT takes as a mask. An
    empty mask has none. Masks may overlap.
    """

    def __init__(self, folder: Path, anatomies: Sequence[str]) -> None:
        self.folder = folder
        self.categories = [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in enumerate(anatomies, start=1)
        ]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def files(self, place: str) -> list[Path]:
        """The frame alone."""
        return [self.folder / "images" / SUBSET / f"{place}.png"]

    def write(self, place: str, pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> None:
        """Write the frame, and keep its run lengths."""
        height, width = pixels.shape[:2]
        number = len(self.images) + 1
        entry = {"id": number, "file_name": f"{place}.png", "width": width, "height": height}
        self.images.append(entry)
        for category, mask in zip(self.categories, masks, strict=True):
            if mask.any():
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": number,
                        "category_id": category["id"],
                        **_segmentation(mask),
                        "iscrowd": 1,
                    }
                )
        write_png(self.files(place)[0], pixels)

    def close(self) -> None:
        """Write the annotations; without a frame nothing."""
        if not self.images:
            return
        value = {
            "info": {"description": "predictions of mtkd, to be corrected"},
            "licenses": [],
            "categories": self.categories,
            "images": self.images,
            "annotations": self.annotations,
        }
        write_atomically(self.folder / INSTANCES, json.dumps(value).encode())


def _segmentation(mask: Mask) -> dict[str, Any]:
    """Run lengths, area and box of a mask (H, W)."""
    from pycocotools import mask as coco_masks

    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    size = [int(side) for side in encoded["size"]]
    return {
        "segmentation": {"size": size, "counts": encoded["counts"].decode("ascii")},
        "area": float(mask.sum()),
        "bbox": [float(side) for side in coco_masks.toBbox(encoded)],
    }


class NnunetExport:
    """nnU-Net v2's layout: ``imagesTr/<case>_0000.png``, ``labelsTr/<case>.png``, ``dataset.json``.

    The case of ``01/image03`` is ``01__image03``. A pixel has one label: where masks overlap, the
    last one's.
    """

    def __init__(self, folder: Path, anatomies: Sequence[str]) -> None:
        self.folder = folder
        self.labels = {"background": 0} | {
            name: number for number, name in enumerate(anatomies, start=1)
        }
        self.count = 0

    def files(self, place: str) -> list[Path]:
        """The frame and its labels."""
        case = place.replace("/", "__")
        image = self.folder / "imagesTr" / f"{case}_0000.png"
        return [image, self.folder / "labelsTr" / f"{case}.png"]

    def write(self, place: str, pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> None:
        """Write the labels, then the frame."""
        values = np.zeros(pixels.shape[:2], np.uint8)
        for value, mask in enumerate(masks, start=1):
            values[mask] = value
        image, label = self.files(place)
        write_png(label, values)
        write_png(image, pixels)
        self.count += 1

    def close(self) -> None:
        """Write ``dataset.json``; without a frame nothing."""
        if self.count:
            value = {
                "channel_names": {"0": "R", "1": "G", "2": "B"},
                "labels": self.labels,
                "numTraining": self.count,
                "file_ending": ".png",
                "description": "predictions of mtkd, to be corrected",
            }
            write_json(self.folder / "dataset.json", value)
