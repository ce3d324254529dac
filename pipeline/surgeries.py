"""Surgeries by the names of their folders: which are the same one, in which order, in which split.

A frame is split by its surgery's id and never by a substring of its path.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Literal
from unicodedata import normalize

Split = Literal["train", "val", "test"]
SET_NAME = "[A-Za-z][A-Za-z0-9_-]*"  # of another data set; its surgeries are <name>.<folder>
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def surgery_id(surgery: str | int) -> str | int:
    """What a surgery's name is compared by.

    Returns:
        A number where the name is made of the digits 0 to 9, so that 3 means 03; else the name, in
        one form of Unicode. Of another data set's surgery the same behind its name, so that set.3
        means set.03.
    """
    name = normalize("NFC", str(surgery))
    if re.fullmatch("[0-9]+", name):
        return int(name)
    data_set, _, folder = name.partition(".")
    is_number = re.fullmatch("[0-9]+", folder) and re.fullmatch(SET_NAME, data_set)
    return f"{data_set}.{int(folder)}" if is_number else name


def of_set(data_set: str, folder: str) -> str:
    """A surgery of a data set: the name of its folder, behind the set's if that has a name."""
    return f"{data_set}.{folder}" if data_set else folder


def surgery_order(surgery: str) -> tuple[int, int, str]:
    """A key to sort names by: numbers first, by value; then other names."""
    number = surgery_id(surgery)
    return (0, number, surgery) if isinstance(number, int) else (1, 0, surgery)


def same_surgeries(names: Iterable[str]) -> Iterator[tuple[str | int, list[str]]]:
    """The ids that several names have, each with these names; all in order of appearance."""
    by_id: dict[str | int, list[str]] = {}
    for name in names:
        by_id.setdefault(surgery_id(name), []).append(name)
    return ((number, same) for number, same in by_id.items() if len(same) > 1)


def split_of(surgery: str, val: Collection[str | int], test: Collection[str | int]) -> Split:
    """The split of a surgery by its name; ``val`` and ``test`` hold ids of surgeries."""
    if surgery_id(surgery) in test:
        return "test"
    return "val" if surgery_id(surgery) in val else "train"
