"""Measures of a data set that can be taken before any training.

Shares are of a frame, 0..1. Every result is made of what JSON knows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pipeline.perceptual_hash import ALIKE, BITS, alike
from pipeline.preparation.pictures import Checked
from pipeline.settings import UNLABELLED
from pipeline.surgeries import SPLITS, surgery_id, surgery_order
from pipeline.survey import ALL, Known, Picture, Survey, id_of

LISTED_PAIRS = 500  # of frames that look alike
DIGITS = 6  # of shares


def describe(survey: Survey) -> dict[str, Any]:
    """All measures of a data set.

    Returns:
        pictures (``frames``), masks and surgeries of the whole; ``data_sets``, where there are
        several, the same of each, and its masks by anatomy; ``splits``, by split and anatomy;
        ``surgeries``, by surgery and anatomy; ``duplicates``; ``problems`` and ``warnings``.
    """
    pictures = survey.pictures
    return {
        "anatomies": list(survey.anatomies),
        "frames": len(pictures),
        "masks": sum(len(picture.areas) for picture in pictures),
        "surgery_count": _surgeries(pictures),
        "splits": {
            split: _split(_those_of(pictures, split), survey.anatomies)
            for split in _splits(pictures)
        },
        "data_sets": _by_data_set(pictures, survey.anatomies),
        "surgeries": _by_surgery(pictures, survey.anatomies),
        "duplicates": {
            "exact": exact_duplicates(pictures),
            **near_duplicates(pictures),
        },
        "problems": list(survey.problems),
        "warnings": list(survey.warnings),
    }


def _splits(pictures: Sequence[Picture]) -> list[str]:
    """Those that have frames; frames without a mask come last."""
    order = (ALL, *SPLITS, UNLABELLED)
    return sorted({picture.split for picture in pictures}, key=order.index)


def _those_of(pictures: Iterable[Picture], split: str) -> list[Picture]:
    return [picture for picture in pictures if picture.split == split]


def _split(pictures: Sequence[Picture], anatomies: Sequence[str]) -> dict[str, Any]:
    """The frames of one split, and by anatomy."""
    labelled = any(picture.areas for picture in pictures)
    by_anatomy = {name: of_anatomy(pictures, name) for name in anatomies} if labelled else {}
    return of_frames(pictures) | {"anatomies": by_anatomy}


def of_frames(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Number, surgeries, sizes and brightness of some frames."""
    sizes = Counter("{1}x{0}".format(*picture.frames[0].size) for picture in pictures)
    return {
        "frames": len(pictures),
        "surgeries": _surgeries(pictures),
        "sizes": dict(sizes.most_common()),
        "brightness": _spread([picture.look.brightness for picture in pictures], 1),
        "nearly_black": sum(picture.look.dark for picture in pictures),
    }


def of_anatomy(pictures: Sequence[Picture], anatomy: str) -> dict[str, Any]:
    """One anatomy in the frames of a split.

    Returns:
        Of the frames that have a mask of it, what :func:`of_frames` says, how many masks are empty,
        and the area of the others; ``elsewhere``, how many of the other frames show it; ``known``,
        what is known for its decoder, as the mean over all frames.
    """
    own = [picture for picture in pictures if anatomy in picture.areas]
    areas = [picture.areas[anatomy] for picture in own]
    return of_frames(own) | {
        "empty": areas.count(0),
        "area": _spread([area for area in areas if area], DIGITS),
        "elsewhere": _elsewhere(pictures, anatomy),
        "known": _known([picture.known[anatomy] for picture in pictures]),
    }


def _elsewhere(pictures: Iterable[Picture], anatomy: str) -> dict[str, int]:
    """Whether the frames without a mask of an anatomy show it."""
    others = [picture.shows.get(anatomy) for picture in pictures if anatomy not in picture.areas]
    return {
        "shown": others.count(True),
        "absent": others.count(False),
        "unknown": others.count(None),
    }


def _known(known: Sequence[Known]) -> dict[str, float]:
    anatomy = fmean(each.anatomy for each in known)
    background = fmean(each.background for each in known)
    shares = {"anatomy": anatomy, "background": background, "unknown": 1 - anatomy - background}
    return {name: round(max(0.0, share), DIGITS) for name, share in shares.items()}


def _spread(values: Sequence[float], digits: int) -> dict[str, float | None]:
    """Median and extremes; None of no values."""
    if not values:
        return {"median": None, "least": None, "most": None}
    measures = {"median": median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in measures.items()}


def _surgeries(pictures: Iterable[Picture]) -> int:
    return len({surgery_id(picture.surgery) for picture in pictures})


def _by_data_set(pictures: Sequence[Picture], anatomies: Sequence[str]) -> dict[str, Any]:
    """Of each of several data sets its frames, surgeries and masks that are not empty.

    The first one is called ``data.root``; frames without masks are of none.
    """
    by_name: dict[str, list[Checked]] = {}
    for frame in chain.from_iterable(picture.frames for picture in pictures):
        data_set = frame.source.data_set
        if data_set is not None:
            by_name.setdefault(data_set.name or "data.root", []).append(frame)
    if len(by_name) < 2:
        return {}
    return {name: _data_set(frames, anatomies) for name, frames in by_name.items()}


def _data_set(frames: Sequence[Checked], anatomies: Sequence[str]) -> dict[str, Any]:
    shown = Counter(frame.source.anatomy for frame in frames if frame.covered)
    return {
        "frames": len({frame.digest for frame in frames}),
        "surgery_count": len({surgery_id(frame.source.surgery) for frame in frames}),
        "anatomies": {name: shown[name] for name in anatomies},
    }


def _by_surgery(pictures: Sequence[Picture], anatomies: Sequence[str]) -> dict[str, Any]:
    """Of each surgery its splits, frames, and frames that have a mask of each anatomy."""
    by_id: dict[str | int, list[Picture]] = {}
    for picture in pictures:
        by_id.setdefault(surgery_id(picture.surgery), []).append(picture)
    by_name = {of[0].surgery: of for of in by_id.values()}
    return {name: _surgery(by_name[name], anatomies) for name in sorted(by_name, key=surgery_order)}


def _surgery(pictures: Sequence[Picture], anatomies: Sequence[str]) -> dict[str, Any]:
    return {
        "splits": _splits(pictures),
        "frames": len(pictures),
        "brightness": _spread([picture.look.brightness for picture in pictures], 1)["median"],
        "anatomies": _shown(pictures, anatomies),
    }


def _shown(pictures: Iterable[Picture], anatomies: Sequence[str]) -> dict[str, int]:
    """By anatomy, the frames whose mask of it is not empty."""
    shown: Counter[str] = Counter()
    for picture in pictures:
        shown.update(name for name, area in picture.areas.items() if area)
    return {name: shown[name] for name in anatomies}


def exact_duplicates(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Files of the same pixels that should be one.

    A frame may stand in several sub-data sets of its surgery. It should not stand in two surgeries,
    or twice in one sub-data set.

    Returns:
        Groups of ids, each with ``where``: ``two splits``, ``two surgeries``, or ``one surgery``.
    """
    by_digest: dict[str, dict[Path, Checked]] = {}
    for frame in chain.from_iterable(picture.frames for picture in pictures):
        by_digest.setdefault(frame.digest, {}).setdefault(frame.source.image, frame)
    groups = []
    for same in by_digest.values():
        where = _where(list(same.values()))
        if where is not None:
            ids = [id_of(frame.source) for frame in same.values()]
            groups.append({"where": where, "frames": ids})
    return groups


def _where(same: Sequence[Checked]) -> str | None:
    """What is wrong with files of the same pixels, or None."""
    if len({frame.split for frame in same}) > 1:
        return "two splits"
    if len({surgery_id(frame.source.surgery) for frame in same}) > 1:
        return "two surgeries"
    folders = Counter(frame.source.image.parent for frame in same)
    return "one surgery" if max(folders.values()) > 1 else None


def near_duplicates(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Frames of two surgeries that look alike, and whose pixels are not the same.

    Returns:
        ``near``: the closest pairs of ids, with the bits in which they differ; ``near_pairs``: how
        many there are; ``threshold`` and ``bits``.
    """
    distinct = {picture.frames[0].digest: picture for picture in reversed(pictures)}
    compared = [picture for picture in distinct.values() if picture.look.fingerprint is not None]
    compared.reverse()
    hashes = [picture.look.fingerprint for picture in compared]
    surgeries = [surgery_id(picture.surgery) for picture in compared]
    pairs, count = alike([bits for bits in hashes if bits is not None], surgeries, LISTED_PAIRS)
    near = []
    for pair in pairs:
        both = (compared[pair.first], compared[pair.second])
        near.append(
            {
                "distance": pair.distance,
                "splits": [picture.split for picture in both],
                "frames": [picture.id for picture in both],
            }
        )
    return {"near": near, "near_pairs": count, "threshold": ALIKE, "bits": BITS}


def examples(pictures: Sequence[Picture], anatomy: str, number: int = 5) -> list[Picture]:
    """Frames that show what the masks of an anatomy are like, the smallest mask first.

    The smallest, the median and the largest mask are among them. Those between are of surgeries
    that are not there yet, if a mask of about that size is.

    Args:
        pictures: all frames.
        anatomy: whose masks.
        number: of frames, 3 or more; fewer if there are not so many.
    """
    masks = [picture for picture in pictures if picture.areas.get(anatomy)]
    masks.sort(key=lambda picture: picture.areas[anatomy])
    last = len(masks) - 1
    if last < number:
        return masks
    ranks = [round(i * last / (number - 1)) for i in range(number)]
    fixed = {0, round(last / 2), last}
    selected = sorted(fixed)
    for rank in ranks:
        if rank not in fixed:
            used = {masks[of].surgery for of in selected}
            selected.append(_near_rank(masks, rank, last // (2 * number), used, selected))
    return [masks[rank] for rank in sorted(selected)]


def _near_rank(
    masks: Sequence[Picture], rank: int, reach: int, used: set[str], selected: Sequence[int]
) -> int:
    """The closest rank within reach whose surgery is not used, or the rank itself."""
    ranks = sorted(range(rank - reach, rank + reach + 1), key=lambda other: abs(other - rank))
    free = [other for other in ranks if masks[other].surgery not in used and other not in selected]
    return free[0] if free else rank
