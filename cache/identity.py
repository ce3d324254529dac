"""What a store is bound to, as one hash; and the checksum that binds each frame to its store."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def identity_of(parts: Mapping[str, Any]) -> str:
    """sha256 (hex) of parts as canonical JSON: their order does not matter.

    Raises:
        TypeError: a part is not a JSON value.
        ValueError: a number is not finite.
    """
    text = json.dumps(
        parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def frame_checksum(logits: NDArray[np.float16], identity: str) -> int:
    """crc32c of a frame's little-endian float16 bytes, seeded with the store's identity.

    A chunk's own checksum would accept another store's chunk; this one does not.
    """
    content = np.ascontiguousarray(logits, dtype="<f2").tobytes()
    return int(google_crc32c.extend(google_crc32c.value(identity.encode()), content))
