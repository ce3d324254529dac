"""What the tests share: a small data set in DSAD's layout, real frames where there are some, and
the command line.
"""

import os
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import yaml
from typer.testing import CliRunner

from stages.cli import app

ROOT = Path(__file__).parents[1]
# Real frames in DSAD's layout, a folder for each data set; tests that need them are skipped where
# there are none.
REAL_DATA = Path(os.environ.get("MTKD_REAL_DATA", "no real data"))

STEPS = [
    ("prepare",), ("train-teacher", "liver"), ("train-teacher", "colon"), ("cache-logits",),
    ("train-student", "baseline"), ("train-student", "mtkd"), ("evaluate",), ("benchmark",),
    ("report",), ("summary",),
]  # fmt: skip


def mtkd(*arguments, code=0):
    with patch.dict(os.environ):  # a run on the CPU hides the GPUs from its process
        result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result.output


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])


def disc(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def change(run, **values):
    """Settings of a run: ``change(run, cache__seed=9)``."""
    params = yaml.safe_load((run / "params.yaml").read_text())
    for key, value in values.items():
        section, _, name = key.partition("__")
        params[section][name] = value
    (run / "params.yaml").write_text(yaml.safe_dump(params))


def write_label_maps(root, names, surgeries, frames=2, size=(48, 64), seed=0):
    """A data set of label maps: a disc of each anatomy, the first names' under the last ones'."""
    rng = np.random.default_rng(seed)
    for surgery in surgeries:
        for number in range(frames):
            values = np.zeros(size, np.uint8)
            frame = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
            for i, _ in enumerate(names):
                mask = disc(size, rng.integers([8, 8], [size[0] - 8, size[1] - 8]), 7)
                values[mask] = i + 1
                frame[mask] = np.roll([220, 90, 30], i)
            write_png(root / surgery / f"image{number:02d}.png", frame)
            write_png(root / surgery / f"label{number:02d}.png", values)
    (root / "anatomies.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def write_dataset(
    root,
    anatomies=("liver", "colon"),
    surgeries=("01", "02", "03"),
    frames=3,
    size=(48, 64),
    seed=0,
):
    """Each frame shows one bright disc per anatomy, in its own colour; the label is the own
    anatomy's disc.
    """
    rng = np.random.default_rng(seed)
    for own in anatomies:
        for surgery in surgeries:
            for number in range(frames):
                frame = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
                for i, anatomy in enumerate(anatomies):
                    mask = disc(size, rng.integers([8, 8], [size[0] - 8, size[1] - 8]), 7)
                    frame[mask] = np.roll([220, 90, 30], i)
                    if anatomy == own:
                        label = mask
                write_png(root / own / surgery / f"image{number:02d}.png", frame)
                write_png(
                    root / own / surgery / f"mask{number:02d}.png", label.astype(np.uint8) * 255
                )
    return root
