"""Tables from which the measures of an evaluation, their means and intervals can be computed again."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from pipeline.evaluation.analysis import per_surgery
from pipeline.evaluation.per_frame import METRICS, Result
from pipeline.files import write_atomically

COUNTS = ("tp", "fp", "fn", "tn")


def write_per_frame(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """One row per network and frame: pixel counts, then every metric as a share (hd95 in pixels); empty where NaN."""
    rows = []
    for name, own in results.items():
        for r in own:
            counts = (getattr(r.counts, c) for c in COUNTS)
            values = (_cell(r.value(m)) for m in METRICS)
            rows.append((name, r.frame.anatomy, r.surgery, r.frame.id, *counts, *values))
    write_csv(path, ("network", "anatomy", "surgery", "frame", *COUNTS, *METRICS), rows)


def write_per_surgery(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """One row per network, surgery and anatomy: number of frames, and the mean of every metric over them."""
    rows = [
        (name, row["surgery"], row["anatomy"], row["frames"], *(_cell(row[m]) for m in METRICS))
        for name, own in results.items()
        for row in per_surgery(own)
    ]
    write_csv(path, ("network", "surgery", "anatomy", "frames", *METRICS), rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with a header; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


def _cell(value: float | None) -> str:
    return "" if value is None or isnan(value) else f"{value:.6g}"
