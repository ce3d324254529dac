"""Lossless compression, chosen by trial on real logits and by size alone: by time, two runs would differ."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

LEVEL = 5

# The inner codecs of a shard. crc32c comes last: Zarr's default protects the shard's index and not its data.
CANDIDATES: dict[str, list[Any]] = {
    "zstd-shuffle": [BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle="shuffle"), Crc32cCodec()],
    "zstd-bitshuffle": [BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
    "zstd": [ZstdCodec(level=LEVEL), Crc32cCodec()],
}


def trial(block: NDArray[np.float16]) -> dict[str, Any]:
    """Store a block (n, 2, h, w) in memory with every candidate, one chunk per frame.

    Returns:
        ``{"chosen": name, "trial_bytes": {name: bytes}}``; the first of equally small ones is chosen.
    """
    sizes = {name: _stored_bytes(block, codecs) for name, codecs in CANDIDATES.items()}
    return {"chosen": min(sizes, key=sizes.__getitem__), "trial_bytes": sizes}


def _stored_bytes(block: NDArray[np.float16], codecs: list[Any]) -> int:
    files: dict[str, Any] = {}
    chunk = (1, *block.shape[1:])
    array = zarr.create_array(
        MemoryStore(files), shape=block.shape, chunks=chunk, dtype="float16", fill_value=np.nan, compressors=codecs
    )
    array[:] = block
    return sum(len(content) for name, content in files.items() if name != "zarr.json")
