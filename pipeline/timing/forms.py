"""The forms in which networks serve N anatomies, beside one another in tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How many networks and decoders N anatomies have.

    Attributes:
        name: ``separate``: a network per anatomy; ``shared``: one encoder with a decoder per
            anatomy; ``shared_decoder``: one encoder and one decoder. The paper has the first two.
        networks: that see a frame.
        anatomies: of each network.
        shared: whether these have one decoder together.
        title: for tables.
    """

    name: str
    networks: int
    anatomies: int
    shared: bool
    title: str


def forms(anatomies: int) -> tuple[Form, ...]:
    """The three forms for N anatomies."""
    return (
        Form("separate", anatomies, 1, False, f"{anatomies} networks"),
        Form("shared", 1, anatomies, False, f"{anatomies} decoders"),
        Form("shared_decoder", 1, anatomies, True, "1 decoder"),
    )
