"""What smoothing of margins gives and costs: flicker, and Dice on a moving film.

    python docs/scripts/steady_masks.py

In a project with a student of the phantom. Flicker is the share of pixels whose label changes from
one frame to the next, of scenes that stand still before a noisy sensor. Dice is of all pixels of a
moving film together, mean over anatomies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import shared
from moving_phantom import SCENE, SWAY, moving_frames
from numpy.typing import NDArray

from pipeline.counts import Counts, count_masks
from pipeline.decision import label_map
from pipeline.evaluation.dice import pooled
from pipeline.live.session import LiveModel
from pipeline.live.smoothing import Smoothing, flicker
from pipeline.machine import Machine
from pipeline.phantom.patient import ANATOMIES
from pipeline.settings import Data
from stages.live import Options, load_model
from stages.shared.project import load_project

SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)
SCENES = 11
SIZE = (384, 480)


def main() -> None:
    """Print a row for each share of the frames before."""
    project = load_project(Path())
    model = load_model(project.student_checkpoint("mtkd"), Machine("cpu"), Options())
    still, moving = (_film(model, project.params.data, sway) for sway in (0.0, SWAY))
    print("| share of the frames before | flicker, % | Dice, moving |")
    print("|---|---:|---:|")
    for share in SHARES:
        flickers = _flicker(list(_labels(still, share)))
        dice = _dice(moving, list(_labels(moving, share)))
        print(f"| {share} | {flickers:.2f} | {dice:.1f} |")


@dataclass(frozen=True)
class Moment:
    """A frame, its label map, and what the network says of it."""

    frame: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    margins: NDArray[np.float32]


def _film(model: LiveModel, data: Data, sway: float) -> list[Moment]:
    frames = islice(moving_frames(data, SIZE, sway=sway), SCENES * SCENE)
    return [Moment(frame, truth, model.claims(frame)) for frame, truth in frames]


def _labels(film: list[Moment], share: float) -> Iterator[NDArray[np.uint8]]:
    smoothing = Smoothing(share)
    for moment in film:
        yield label_map(smoothing(moment.frame, moment.margins), SIZE)


def _flicker(labels: list[NDArray[np.uint8]]) -> float:
    """Percent; what changes at a cut is left out."""
    pairs = pairwise(labels)
    shares = [flicker(*pair) for number, pair in enumerate(pairs, start=1) if number % SCENE]
    return 100 * mean(shares)


def _dice(film: list[Moment], labels: list[NDArray[np.uint8]]) -> float:
    counts: dict[int, list[Counts]] = {number: [] for number in range(1, len(ANATOMIES) + 1)}
    for moment, found in zip(film, labels, strict=True):
        for number, of_anatomy in counts.items():
            of_anatomy.append(count_masks(found == number, moment.truth == number))
    return 100 * mean(pooled(of_anatomy).dice for of_anatomy in counts.values())


if __name__ == "__main__":
    shared.run(main)
