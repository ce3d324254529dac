"""COCO's run lengths, checked before a library decodes them.

pycocotools 2.0.11 returns memory that nobody wrote for run lengths that end early. So their sum is
compared with the size here. The text form: each run is a number in groups of five bits, least
first, as characters from ``0`` on. Bit 32 says that another group follows, bit 16 of the last one
is the sign. From the fourth run on, a run is written as its difference to the last but one.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.convert.pictures import Size


def run_length_problem(segmentation: Mapping[str, Any], size: Size) -> str:
    """What is wrong with run lengths of a frame (H, W); empty if nothing is."""
    stated = segmentation.get("size")
    if stated != list(size):
        return f"its run lengths are for the size {stated}, and the frame has {list(size)}"
    counts = segmentation.get("counts")
    try:
        runs = counts if isinstance(counts, list) else decoded_runs(counts)
    except ValueError as error:
        return f"its run lengths are broken ({error})"
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        return "its run lengths are broken (a run is no whole number from 0 on)"
    pixels = size[0] * size[1]
    if sum(runs) != pixels:
        return f"its run lengths are broken (they cover {sum(runs)} of {pixels} pixels)"
    return ""


def decoded_runs(text: Any) -> list[int]:
    """The runs of COCO's text form.

    Raises:
        ValueError: it is no text, has other characters, or ends within a number.
    """
    if not isinstance(text, str):
        raise ValueError(f"counts is a {type(text).__name__}")
    runs: list[int] = []
    value = 0
    shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = 0
        shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return runs
