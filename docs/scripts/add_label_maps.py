"""A data set with the complete label maps of those of its frames that a folder of maps has.

    python docs/scripts/add_label_maps.py SOURCE MAPS TARGET

MAPS is a folder as ``mtkd evaluate`` reads it: <surgery>/imageMM.png and labelMM.png, and
anatomies.txt. Frames are found in it by their picture. TARGET holds links only; ``data.root:
TARGET`` then measures every decoder on these frames.
"""

import shutil
from hashlib import sha256
from pathlib import Path

import shared

from pipeline.dsad import MAPS, read_frame
from pipeline.errors import MtkdError


def main(source: Path, maps: Path, target: Path) -> None:
    """Link SOURCE and, beside it, a map for each frame whose picture MAPS has, into TARGET."""
    shared.refuse_existing(target)
    frames = shared.labelled_frames(source)
    map_of = {_picture(image): _map(image) for image in sorted(maps.glob("*/image*.png"))}
    found = 0
    for frame in frames:
        shared.link_labelled(target, frame)
        label = map_of.get(_picture(frame.image))
        if label is not None:
            name = frame.image.name.replace("image", "label")
            shared.link(target / MAPS / frame.anatomy / frame.surgery / name, label)
            found += 1
    if not found:
        raise MtkdError(f"{maps} has a map of none of the {len(frames)} frames of {source}")
    for weak_labels in source.glob("*/*/weak_labels.csv"):
        shared.link(target / weak_labels.relative_to(source), weak_labels)
    shutil.copyfile(maps / "anatomies.txt", target / MAPS / "anatomies.txt")
    print(f"{target}: {len(frames)} frames, {found} of them with a complete label map")


def _picture(file: Path) -> str:
    pixels = read_frame(file)
    return sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _map(image: Path) -> Path:
    return image.with_name(image.name.replace("image", "label"))


if __name__ == "__main__":
    shared.run(main)
