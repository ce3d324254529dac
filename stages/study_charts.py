"""Curves of a study, as an SVG file beside its tables."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.files import write_atomically

# Okabe and Ito's colours, told apart by everyone.
COLOURS = ("#000000", "#999999", "#d55e00", "#e69f00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7")


def write_curves(path: Path, runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Mean validation Dice over epochs, a panel per student and a line per way; the band spans the seeds.

    Args:
        path: the SVG file; equal runs give equal bytes.
        runs: by student and way, one result per seed (see :func:`stages.study.measure_all`).
    """
    figure = Figure(figsize=(4.5 * len(runs) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (student, ways) in zip(panels, runs.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5")
        axes.set(title=student, xlabel="epoch")
        for colour, (way, seeds) in zip(COLOURS, ways.items(), strict=False):
            dice = np.array([run["val_dice"] for run in seeds], float)
            epochs = range(1, dice.shape[1] + 1)
            axes.plot(epochs, dice.mean(0), color=colour, label=way)
            axes.fill_between(epochs, dice.min(0), dice.max(0), color=colour, alpha=0.12, linewidth=0)
    panels[0].set_ylabel("validation Dice (%)")
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "study", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, text.getvalue().encode())
