"""Reading one chunk of a Zarr v3 shard, without Zarr.

A student reads a chunk per teacher and frame, so this is what it waits for. Of Zarr's milliseconds
per chunk, all but a few are administration.

A shard holds its chunks one after another and ends with their index: offset and length of each as
uint64, little endian, then the index's own crc32c.
"""

import os
from pathlib import Path

import google_crc32c
import numpy as np

EMPTY = 2**64 - 1


def read_chunk(path: Path, slot: int, slots: int) -> bytes:
    """The stored bytes of one chunk, without its crc32c.

    Args:
        path: the shard.
        slot: position of the chunk in the shard.
        slots: chunks that the shard has room for.

    Raises:
        FileNotFoundError: there is no such shard.
        ValueError: what is there is not a whole shard with this chunk; says what is wrong.
    """
    size_of_index = 16 * slots + 4
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        index = os.pread(file.fileno(), size_of_index, max(0, size - size_of_index))
        if len(index) != size_of_index or not _sum_is_right(index):
            raise ValueError("its shard is truncated or its shard's index is damaged")
        offset, length = (int(n) for n in np.frombuffer(index, "<u8", 2, 16 * slot))
        if offset == EMPTY:
            raise ValueError("its shard does not hold it")
        chunk = os.pread(file.fileno(), length, offset)
    if len(chunk) != length or length < 4 or not _sum_is_right(chunk):
        raise ValueError("its checksum does not match")
    return chunk[:-4]


def _sum_is_right(content: bytes) -> bool:
    """Whether the last four bytes are the crc32c of those before."""
    return int(google_crc32c.value(content[:-4])) == int.from_bytes(content[-4:], "little")
