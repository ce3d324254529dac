"""Curves of a study, as an SVG file beside its tables."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.files import write_atomically
from stages.reporting.charts import CHART_COLOURS, svg, unframed
from stages.study.runs import RunResult


def write_curves(
    path: Path,
    runs: Mapping[str, Mapping[str, Sequence[RunResult]]],
    lengths: Mapping[str, float],
) -> None:
    """Draw mean validation Dice over epochs, a panel per student and a line per condition.

    A band spans the seeds.

    Args:
        path: the SVG file; equal runs give equal bytes.
        runs: by student and condition, one result per seed.
        lengths: by condition, the frames of one of its epochs in epochs of the baseline, which are
            those that are drawn.
    """
    figure = Figure(figsize=(4.5 * len(runs) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (student, conditions) in zip(panels, runs.items(), strict=True):
        unframed(axes).set(title=student, xlabel="epoch")
        for colour, (name, seeds) in zip(cycle(CHART_COLOURS), conditions.items(), strict=False):
            dice = np.array([run.val_dice for run in seeds], float)
            epochs = np.arange(1, dice.shape[1] + 1) * lengths[name]
            axes.plot(epochs, dice.mean(0), color=colour, label=name)
            axes.fill_between(
                epochs, dice.min(0), dice.max(0), color=colour, alpha=0.12, linewidth=0
            )
    panels[0].set_ylabel("validation Dice (%)")
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    write_atomically(path, svg(figure, "study").encode())
