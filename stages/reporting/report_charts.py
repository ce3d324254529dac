"""The report's charts, as SVG that stands in the page."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from stages.reporting.charts import CHART_COLOURS, svg, unframed

NETWORK_COLOURS = {
    "teachers": CHART_COLOURS[1],
    "baseline": CHART_COLOURS[2],
    "mtkd": CHART_COLOURS[5],
}
TITLES = {"teachers": "teachers", "baseline": "baseline", "mtkd": "distilled"}
PAPER_MARKERS = {"separate": "o", "shared": "s", "shared+mtkd": "^"}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, unframed(figure.add_subplot())


def _legend(axes: Axes, **options: Any) -> None:
    """A legend of what was drawn; without test frames that is nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, **options)


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element; equal figures give equal text."""
    text = svg(figure, label, text="none")
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def curves(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Markup:
    """Values over epochs: a panel per quantity, a line per student that has it.

    Args:
        values: by quantity and student, one value per epoch.
    """
    figure = Figure(figsize=(3.6 * len(values), 3), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (quantity, lines) in zip(panels, values.items(), strict=True):
        for name, line in lines.items():
            epochs = range(1, len(line) + 1)
            unframed(axes).plot(
                epochs,
                line,
                color=NETWORK_COLOURS[name],
                label=TITLES[name],
                marker="o",
                markersize=3,
            )
        axes.set(title=quantity, xlabel="epoch")
        axes.set_ylim(bottom=0)
    _legend(panels[0])
    return _svg(figure, "training curves of the students")


def accuracy_and_speed(
    rows: Sequence[Mapping[str, Any]], paper: Mapping[tuple[str, str], Mapping[str, float]]
) -> Markup:
    """Dice over frames per second, as the paper's Figure 1.

    Args:
        rows: this run's networks, as of :func:`stages.summary.results`.
        paper: Table 1, whose networks become hollow marks; empty for none. Its times are of the
            paper's machine.
    """
    figure, axes = _figure(8, 3.8)
    _draw_networks(axes, rows)
    _draw_paper(axes, paper)
    axes.set(
        xlabel="frames per second (logarithmic)", ylabel="Dice (%)", xscale="log", ylim=(0, 100)
    )
    low, high = np.log10(axes.get_xlim())
    # Whole decades: some tick is always within.
    axes.set_xlim(10 ** np.floor(low), 10 ** np.ceil(high))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(axes, fontsize=8)
    return _svg(figure, "accuracy over speed")


def _draw_networks(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for row, name in zip(rows, NETWORK_COLOURS, strict=True):
        if row["dice"]["mean"] is not None:
            axes.scatter(
                row["fps"],
                row["dice"]["mean"],
                s=70,
                color=NETWORK_COLOURS[name],
                label=f"{TITLES[name]} (here)",
            )


def _draw_paper(axes: Axes, paper: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
    for form, marker in PAPER_MARKERS.items():
        networks = [row for (_, row_form), row in paper.items() if row_form == form]
        if networks:
            axes.scatter(
                [row["fps"] for row in networks],
                [row["dice"] for row in networks],
                marker=marker,
                facecolors="none",
                edgecolors="#555",
                label=f"paper, RTX 3090: {form}",
            )


def dice_of_frames(
    values: Mapping[tuple[str, str], Sequence[float]], anatomies: Sequence[str]
) -> Markup:
    """Every test frame's Dice as a dot, with the mean as a bar; one row per anatomy.

    Args:
        values: Dice of frames in percent, by network and anatomy.
        anatomies: the rows, from above.
    """
    figure, axes = _figure(8, 0.6 * len(anatomies) + 1)
    rng = np.random.default_rng(0)
    labelled = set[str]()
    for (i, anatomy), (k, name) in product(enumerate(anatomies), enumerate(NETWORK_COLOURS)):
        dice = values.get((name, anatomy), [])
        if dice:
            height = i + 0.27 * (k - 1)
            axes.scatter(
                dice,
                height + rng.uniform(-0.07, 0.07, len(dice)),
                s=9,
                color=NETWORK_COLOURS[name],
                alpha=0.5,
                linewidths=0,
                label=None if name in labelled else TITLES[name],
            )
            axes.plot(
                [np.mean(dice)] * 2,
                [height - 0.12, height + 0.12],
                color=NETWORK_COLOURS[name],
                linewidth=2.5,
            )
            labelled.add(name)
    axes.set(xlabel="Dice of a frame (%)", xlim=(-2, 102), ylim=(len(anatomies) - 0.5, -0.5))
    axes.set_yticks(range(len(anatomies)), [a.replace("_", " ") for a in anatomies])
    _legend(axes, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return _svg(figure, "Dice of every test frame")
