"""Colours that colour-blind people can tell apart, by name.

The first are Okabe and Ito's, the others Paul Tol's muted ones.
"""

from collections.abc import Sequence

Colour = tuple[int, int, int]  # RGB
PALETTE: dict[str, Colour] = {
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "bluish green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "vermillion": (213, 94, 0),
    "reddish purple": (204, 121, 167),
    "white": (245, 245, 245),
    "indigo": (51, 34, 136),
    "olive": (153, 153, 51),
    "wine": (136, 34, 85),
    "sand": (221, 204, 119),
}


def colours_of(anatomies: Sequence[str]) -> dict[str, tuple[str, Colour]]:
    """Name and value of each anatomy's colour; they come again after twelve."""
    named = list(PALETTE.items())
    return {anatomy: named[i % len(named)] for i, anatomy in enumerate(anatomies)}
