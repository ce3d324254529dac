"""The format on disk, shared by reader and writer.

A Zarr v3 group with the arrays

- ``logits`` (view, frame, channel, y, x) float16: channel 0 = background, 1 = anatomy, at the
  network's own output resolution; one chunk = one frame of one view, many frames to a shard, fill
  value NaN;
- ``checksum`` (view, frame) uint32: see :func:`cache.identity.frame_checksum`;
- ``pixels`` (view, frame) uint32: crc32c of the teacher's input, a uint8 frame;

and attributes that say everything else. Two hashes guard it: ``identity`` covers what is known
before the first frame, ``seal`` what is known after the last: all files but the shards, which
``checksum`` covers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cache.identity import file_sha256, identity_of

FORMAT = "mtkd-logits"
FORMAT_VERSION = 1
DIMENSIONS = ("view", "frame", "channel", "y", "x")
TABLES = ("pixels", "checksum")
CHANNELS = ("background", "anatomy")
GEOMETRY = (
    "align_corners=False; native resolution, pixel centres aligned: "
    "cell i spans [i, i + 1] / n of the frame"
)

# The files that a writer creates, and Zarr's own partial ones. They identify a store that lost its
# attributes.
_FILES = re.compile(
    r"((logits|pixels|checksum)/)?zarr\.(json|[0-9a-f]+\.partial)"
    r"|(logits|pixels|checksum)/c/[0-9/]+(\.[0-9a-f]+\.partial)?"
)

# Attributes that the identity cannot cover: itself, and what only the content decides.
RESULTS = ("identity", "codec", "complete", "seal")


def describe(
    anatomy: str,
    frames: Sequence[str],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    views: Sequence[Mapping[str, Any]],
    identity_parts: Mapping[str, Any],
    shard_frames: int,
    keep_bits: int | None,
) -> dict[str, Any]:
    """The attributes of a new store, identity included."""
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "anatomy": anatomy,
        "channels": list(CHANNELS),
        "geometry": GEOMETRY,
        "grid": list(grid),
        "image_size": list(image_size),
        "views": [dict(view) for view in views],
        "shard_frames": shard_frames,
        "keep_bits": keep_bits,
        "identity_parts": dict(identity_parts),
        "frames": list(frames),
    }
    return {"identity": identity_from(attributes), **attributes}


def identity_from(attributes: Mapping[str, Any]) -> str:
    """The identity that these attributes amount to."""
    return identity_of({key: value for key, value in attributes.items() if key not in RESULTS})


def seal_of(path: Path) -> dict[str, str]:
    """sha256 (hex) by file of all files of a store but the shards.

    ``zarr.json`` counts without the seal that it holds.
    """
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"].pop("seal", None)
    # A copy of other files' content, which other tools may add.
    document.pop("consolidated_metadata", None)
    tables = chain.from_iterable((path / name).rglob("*") for name in TABLES)
    files = [path / "logits/zarr.json", *sorted(tables)]
    names = {file.relative_to(path).as_posix(): file for file in files if file.is_file()}
    # Readers of Zarr ignore all other files. File managers and network storage leave some
    # everywhere.
    hashes = {name: file_sha256(file) for name, file in names.items() if _FILES.fullmatch(name)}
    return {"zarr.json": identity_of(document), **hashes}


def begun_attributes(path: str | Path) -> dict[str, Any]:
    """The attributes in a folder's zarr.json, unchecked; empty if they cannot be read."""
    try:
        return dict(json.loads((Path(path) / "zarr.json").read_text())["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_logit_store(path: str | Path) -> bool:
    """Whether a folder is a logit store (whole, begun or damaged), or empty."""
    path = Path(path)
    if not path.is_dir():
        return False
    if attributes := begun_attributes(path):
        return attributes.get("format") == FORMAT
    names = [
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if not (file.is_dir() or _is_foreign(file))
    ]
    # A writer creates the tables before it writes the first shard.
    has_tables = all((path / name).is_dir() for name in TABLES)
    return all(_FILES.fullmatch(name) and (has_tables or "/c/" not in name) for name in names)


def _is_foreign(file: Path) -> bool:
    """Whether macOS, Windows or network storage put a file there, as all those in ``@eaDir``."""
    return (
        file.name.startswith(".")
        or file.name in ("Thumbs.db", "desktop.ini")
        or "@eaDir" in file.parts
    )


def shard_name(view: int, position: int, shard_frames: int) -> str:
    """The file, within the store, that holds a frame."""
    return f"logits/c/{view}/{position // shard_frames}/0/0/0"
