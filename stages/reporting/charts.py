"""What all charts share: their look, and SVG that is equal for equal figures."""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which everyone can tell apart. Black and grey come first, for what others
# are compared with.
CHART_COLOURS = (
    "#000000",
    "#999999",
    "#d55e00",
    "#e69f00",
    "#56b4e9",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#6f4e37",
)


def unframed(axes: Axes) -> Axes:
    """The axes, open above and to the right, with a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    return axes


def svg(figure: Figure, name: str, text: str = "path") -> str:
    """The figure as the text of an SVG file.

    Args:
        figure: what is drawn.
        name: sets the ids within, so that two figures of one page do not share any.
        text: ``path``: letters as shapes, the same everywhere; ``none``: as letters, for a page
            with its own font.
    """
    text_file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": text, "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(text_file, format="svg", metadata={"Date": None, "Creator": None})
    return text_file.getvalue()
