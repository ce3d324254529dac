"""Lossless compression, chosen by trial on real logits and by size alone: by time, two runs would differ."""

from typing import Any

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

LEVEL = 5


def trial(block: NDArray[np.float16]) -> dict[str, Any]:
    """Compress each frame of a block (n, 2, h, w) with every candidate.

    Returns:
        ``{"chosen": name, "trial_bytes": {name: bytes}}``; the first of equally small ones is chosen.
    """
    sizes = {name: sum(len(encode.encode(frame)) for frame in block) for name, encode in _candidates().items()}
    return {"chosen": min(sizes, key=sizes.__getitem__), "trial_bytes": sizes}


def _candidates() -> dict[str, Any]:
    return {
        "zstd-shuffle": numcodecs.Blosc("zstd", LEVEL, numcodecs.Blosc.SHUFFLE),
        "zstd-bitshuffle": numcodecs.Blosc("zstd", LEVEL, numcodecs.Blosc.BITSHUFFLE),
        "zstd": numcodecs.Zstd(LEVEL),
    }


def codecs(name: str) -> list[Any]:
    """The inner codecs of a shard. crc32c comes last: Zarr's default protects the shard's index and not its data."""
    if name == "zstd":
        return [ZstdCodec(level=LEVEL), Crc32cCodec()]
    shuffle = name.removeprefix("zstd-")
    return [BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle=shuffle), Crc32cCodec()]
