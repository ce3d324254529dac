"""Tables from which an evaluation's metrics, means and intervals can be computed again."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from pipeline.evaluation.analysis import per_surgery
from pipeline.evaluation.per_frame import MEASURES, Result
from pipeline.files import write_atomically

PIXEL_COUNTS = ("tp", "fp", "fn", "tn")


def write_per_frame(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """One row per network and frame: pixel counts, then every metric.

    A metric is a share from 0 to 1, but hd95, which is in pixels; a cell is empty where it is NaN.
    """
    rows = []
    for network, of_frames in results.items():
        for result in of_frames:
            key = (network, result.frame.anatomy, result.surgery, result.frame.id)
            counts = [getattr(result.counts, count) for count in PIXEL_COUNTS]
            values = [_cell(result.value(metric)) for metric in MEASURES]
            rows.append((*key, *counts, *values))
    write_csv(path, ("network", "anatomy", "surgery", "frame", *PIXEL_COUNTS, *MEASURES), rows)


def write_per_surgery(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """One row per network, surgery and anatomy: number of frames, and each metric's mean."""
    rows = []
    for network, of_frames in results.items():
        for row in per_surgery(of_frames):
            key = (network, row["surgery"], row["anatomy"], row["frames"])
            values = [_cell(row[metric]) for metric in MEASURES]
            rows.append((*key, *values))
    write_csv(path, ("network", "surgery", "anatomy", "frames", *MEASURES), rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with a header; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


def _cell(value: float | None) -> str:
    return "" if value is None or isnan(value) else f"{value:.6g}"
