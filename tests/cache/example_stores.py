"""Small stores for the tests.

``python example_stores.py FOLDER`` writes one, slowly enough to be killed.
"""

import sys
import time
from pathlib import Path

import numpy as np

import cache

GRID = (6, 8)
PARTS = {"teacher": "aa", "frames": "bb", "precision": "32-true"}


def logits(frames, seed=0, grid=GRID):
    return (np.random.default_rng(seed).standard_normal((frames, 2, *grid)) * 5).astype(np.float32)


def begin(path, frames=10, *, shard=4, parts=PARTS, views=1, anatomy="liver", grid=GRID):
    return cache.create_store(
        path / "scratch" / f"{anatomy}.zarr",
        anatomy=anatomy,
        frames=[f"liver/01/image{i:02d}" for i in range(frames)],
        grid=grid,
        image_size=(4 * grid[0], 4 * grid[1]),
        identity_parts=parts,
        views=[{"view": v, "clean": views == 1} for v in range(views)],
        shard_frames=shard,
    )


def write(path, frames=10, *, seed=0, views=1, **options):
    target = path / "stores" / f"{options.get('anatomy', 'liver')}.zarr"
    with begin(path, frames, views=views, **options) as writer:
        writer.append(
            logits(frames * views, seed, options.get("grid", GRID)), range(frames * views)
        )
        writer.finish(target)
    return target


def files(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def resume(path, frames=10, *, views=1, batch=1000, pause=0.0, **options):
    """Write what is missing, in batches."""
    target = path / "stores" / "liver.zarr"
    values = logits(frames * views, grid=options.get("grid", GRID))
    with begin(path, frames, views=views, **options) as writer:
        print("begun", flush=True)
        while (done := writer.next) < writer.total:
            stop = min(done + batch, writer.total)
            writer.append(values[done:stop], range(done, stop))
            time.sleep(pause)
        writer.finish(target)
    return target


if __name__ == "__main__":
    resume(Path(sys.argv[1]), 30, views=2, batch=3, pause=0.01)
