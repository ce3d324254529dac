"""Lossless compression, chosen by trial on real logits.

The trial compares sizes alone: by time, two runs would differ. Rounding the mantissas first
(BitRound) makes a store smaller still, and is not lossless.
"""

from typing import Any

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import zarr
from numcodecs import BitRound
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from cache.errors import UnstorableError

LEVEL = 5

# The inner codecs of a shard. crc32c comes last: Zarr's default protects the shard's index and not
# its data.
CANDIDATES: dict[str, list[Any]] = {
    "zstd-shuffle": [
        BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle="shuffle"),
        Crc32cCodec(),
    ],
    "zstd-bitshuffle": [
        BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle="bitshuffle"),
        Crc32cCodec(),
    ],
    "zstd": [ZstdCodec(level=LEVEL), Crc32cCodec()],
}
_DECODERS: dict[str, Any] = {
    "zstd-shuffle": numcodecs.blosc.decompress,
    "zstd-bitshuffle": numcodecs.blosc.decompress,
    "zstd": numcodecs.zstd.decompress,
}
# Blosc's pool of threads does not survive a fork: a forked loader worker would wait for it forever.
numcodecs.blosc.use_threads = False


def trial(block: NDArray[np.float16]) -> dict[str, Any]:
    """Store a block (n, 2, h, w) in memory with every candidate, one chunk per frame.

    Returns:
        ``{"chosen": name, "trial_bytes": {name: bytes}}``; the first of equally small ones is
        chosen.
    """
    sizes = {name: _stored_bytes(block, codecs) for name, codecs in CANDIDATES.items()}
    return {"chosen": min(sizes, key=sizes.__getitem__), "trial_bytes": sizes}


def rounded(frame: NDArray[np.float16], keep_bits: int | None) -> NDArray[np.float16]:
    """The nearest values with that many bits of mantissa; the same array for None.

    Raises:
        UnstorableError: a value is so large that it would round to infinity.
    """
    if keep_bits is None:
        return frame
    codec = BitRound(keepbits=keep_bits)
    values = np.asarray(codec.decode(codec.encode(frame)), np.float16)
    if not np.isfinite(values).all():
        largest = np.abs(frame).max()
        raise UnstorableError(
            None, f"with {keep_bits} bits a logit of {largest} becomes infinite: keep more bits"
        )
    return values.reshape(frame.shape)


def decoded(chunk: bytes, codec: str) -> bytes:
    """The float16 bytes of a chunk that was stored with a candidate, without its crc32c."""
    return bytes(_DECODERS[codec](chunk))


def _stored_bytes(block: NDArray[np.float16], codecs: list[Any]) -> int:
    files: dict[str, Any] = {}
    chunk = (1, *block.shape[1:])
    array = zarr.create_array(
        MemoryStore(files),
        shape=block.shape,
        chunks=chunk,
        dtype="float16",
        fill_value=np.nan,
        compressors=codecs,
    )
    array[:] = block
    return sum(len(content) for name, content in files.items() if name != "zarr.json")
