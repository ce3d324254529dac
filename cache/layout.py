"""The format on disk, shared by reader and writer.

A Zarr v3 group with the arrays

- ``logits`` (view, frame, channel, y, x) float16: channel 0 = background, 1 = anatomy, at the network's own output
  resolution; one chunk = one frame of one view, many frames to a shard, fill value NaN;
- ``checksum`` (view, frame) uint32: see :func:`cache.identity.frame_checksum`;
- ``pixels`` (view, frame) uint32: crc32c of the uint8 frame that the teacher was shown;

and attributes that say everything else. ``checksum`` and ``pixels`` have one chunk per shard of ``logits``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cache.identity import identity_of

FORMAT, VERSION = "mtkd-logits", 1
DIMENSIONS = ("view", "frame", "channel", "y", "x")
CHANNELS = ("background", "anatomy")
GEOMETRY = "native resolution; pixel centres aligned (align_corners=False): cell i spans [i, i + 1] / n of the frame"

# What the identity covers; a changed value is an edited store.
IDENTIFYING = ("format", "version", "anatomy", "frames", "grid", "image_size", "views", "identity_parts")


def describe(
    anatomy: str,
    frames: Sequence[str],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    views: Sequence[Mapping[str, Any]],
    identity_parts: Mapping[str, Any],
    shard_frames: int,
) -> dict[str, Any]:
    """The attributes of a new store, identity included."""
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "anatomy": anatomy,
        "channels": list(CHANNELS),
        "geometry": GEOMETRY,
        "grid": list(grid),
        "image_size": list(image_size),
        "views": [dict(view) for view in views],
        "shard_frames": shard_frames,
        "identity_parts": dict(identity_parts),
        "frames": list(frames),
    }
    return {"identity": identity_from(attributes), **attributes}


def identity_from(attributes: Mapping[str, Any]) -> str:
    """The identity that these attributes amount to."""
    return identity_of({key: attributes.get(key) for key in IDENTIFYING})
