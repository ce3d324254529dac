"""Looking at a store from outside: is it whole, and how large is it."""

from pathlib import Path
from typing import Any

from cache.errors import StoreError
from cache.layout import CHANNELS
from cache.store import open_store


def verify(path: str | Path) -> list[str]:
    """What is wrong with a store, one line each; empty if every frame reads as it was written.

    Args:
        path: the folder.
    """
    try:
        return open_store(path).faults()
    except StoreError as error:
        return [str(error)]


def estimate(frames: int, views: int, grid: tuple[int, int]) -> int:
    """Bytes of raw float16 logits, which a store compresses."""
    height, width = grid
    return 2 * views * frames * len(CHANNELS) * height * width


def stats(path: str | Path) -> dict[str, Any]:
    """Size of a store.

    Args:
        path: the folder.

    Returns:
        ``frames``, ``views``, ``bytes`` on disk, ``bytes_per_frame`` (and view), and how many times
        larger the same values are as raw float16 (``ratio_to_raw``) and as raw float16 at full
        resolution (``ratio_to_full_size``).

    Raises:
        StoreError: there is no complete store.
    """
    store = open_store(path)
    views, frames, _, height, width = store.shape
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    return {
        "frames": frames,
        "views": views,
        "bytes": size,
        "bytes_per_frame": round(size / (views * frames)),
        "ratio_to_raw": round(estimate(frames, views, (height, width)) / size, 3),
        "ratio_to_full_size": round(
            estimate(frames, views, store.attributes["image_size"]) / size, 3
        ),
        "codec": store.attributes["codec"]["chosen"],
    }
