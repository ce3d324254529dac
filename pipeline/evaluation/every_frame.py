"""Figures of all decoders over all frames: known pixels, every frame, absence, overlap.

All are plain numbers, ready for JSON; shares are percentages, and None stands where there is
nothing to measure.
"""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from scipy.stats import mannwhitneyu

from pipeline.counts import Counts
from pipeline.evaluation import dice
from pipeline.evaluation.every_decoder import THRESHOLDS
from pipeline.evaluation.per_frame import Result

Row = dict[str, float | None]  # by anatomy and, where that makes sense, "mean"
NONE = "none"


def distinct(results: Sequence[Result]) -> list[Result]:
    """The results without those on a picture that stands in another sub-data set, too."""
    first: dict[tuple[str | int, str], Result] = {}
    for result in results:
        first.setdefault((result.surgery, result.picture), result)
    return list(first.values())


def summarise_all(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Row]:
    """What every decoder says, beside the Dice of each anatomy's own frames.

    Args:
        results: of networks that have a decoder for each anatomy.
        anatomies: the decoders, in order.

    Returns:
        Each with ``mean`` and per anatomy, with one decimal. ``known_dice``: over all pixels of
        which it is known without label maps whether they show the anatomy, of all frames together.
        ``every_dice`` and ``every_iou``: the same over all pixels of the frames whose label map
        names the anatomy. ``absent_area``: the share of a frame that is claimed though it does not
        show the anatomy, mean over such frames. ``presence_auroc``: how well a decoder's largest
        probability tells the frames that show its anatomy from those that do not. And ``overlap``
        with ``mean`` alone: pixels that several decoders claim.
    """
    once = distinct(results)
    mapped = [result for result in once if result.frame.map]
    return {
        "known_dice": _pooled(results, anatomies, "known", "dice"),
        "every_dice": _pooled(mapped, anatomies, "every", "dice"),
        "every_iou": _pooled(mapped, anatomies, "every", "iou"),
        "absent_area": _with_mean({a: _absent_area(once, i, a) for i, a in enumerate(anatomies)}),
        "presence_auroc": _with_mean({a: _auroc(once, i, a) for i, a in enumerate(anatomies)}),
        "overlap": {"mean": _percent(_overlap(once))},
    }


def one_organ(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Row]:
    """Dice of masks by arg max over the anatomies: of own frames, known pixels and every frame."""
    mapped = [result for result in distinct(results) if result.frame.map]
    own = {a: _own_dice(results, i, a) for i, a in enumerate(anatomies)}
    return {
        "dice": _with_mean(own),
        "known_dice": _pooled(results, anatomies, "known_one_organ", "dice"),
        "every_dice": _pooled(mapped, anatomies, "every_one_organ", "dice"),
        "every_iou": _pooled(mapped, anatomies, "every_one_organ", "iou"),
    }


def curve(results: Sequence[Result], anatomies: Sequence[str]) -> list[Row]:
    """Alarms against Dice, for each of :data:`THRESHOLDS`.

    Returns:
        ``threshold`` (a probability); ``known_dice``: the mean over anatomies; ``alarms``: the
        share of the frames without an anatomy in which its decoder claims a pixel, mean over
        anatomies.
    """
    once = distinct(results)
    rows: list[Row] = []
    for position, threshold in enumerate(THRESHOLDS):
        known = [_known_dice_at(results, i, position) for i in range(len(anatomies))]
        alarms = [_alarms(once, i, a, position) for i, a in enumerate(anatomies)]
        means = {"known_dice": known, "alarms": alarms}
        row = {name: _percent(dice.mean(values)) for name, values in means.items()}
        rows.append({"threshold": threshold, **row})
    return rows


def confusion_of_one_organ(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Row]:
    """The percentage of the pixels that are known to show an anatomy which goes to each.

    Returns:
        By what is known (``none``: that no anatomy is there), then by the arg max.
    """
    size = len(anatomies) + 1
    cells = np.zeros((size, size), np.int64)
    for result in distinct(results):
        cells += result.every_decoder.confusion
    names = (NONE, *anatomies)
    table: dict[str, Row] = {}
    for name, row in zip(names, cells.tolist(), strict=True):
        table[name] = {n: _share(cell, sum(row)) for n, cell in zip(names, row, strict=True)}
    return table


def _pooled(
    results: Sequence[Result],
    anatomies: Sequence[str],
    kind: str,
    measure: str,
) -> Row:
    """A measure of all frames' pixels together, per anatomy, and their mean."""
    shares: dict[str, float] = {}
    for decoder, anatomy in enumerate(anatomies):
        counts = [getattr(result.every_decoder, kind)[decoder] for result in results]
        shares[anatomy] = getattr(dice.pooled(filter(None, counts)), measure)
    return _with_mean(shares)


def _own_dice(results: Sequence[Result], decoder: int, anatomy: str) -> float:
    own = [r for r in results if r.frame.anatomy == anatomy]
    return _mean([r.every_decoder.known_one_organ[decoder].dice for r in own])


def _shows(result: Result, anatomy: str) -> bool | None:
    """Whether a frame shows an anatomy, as far as that is known."""
    if result.frame.anatomy != anatomy:
        return result.frame.shows.get(anatomy)
    if result.counts.tp + result.counts.fn > 0:
        return True
    is_labelled_everywhere = sum(astuple(result.counts)) == sum(result.overlaps)
    return False if is_labelled_everywhere else None


def _without(results: Sequence[Result], anatomy: str) -> list[Result]:
    return [result for result in results if _shows(result, anatomy) is False]


def _absent_area(results: Sequence[Result], decoder: int, anatomy: str) -> float:
    absent = _without(results, anatomy)
    return _mean([result.predicted[decoder] / sum(result.overlaps) for result in absent])


def _alarms(results: Sequence[Result], decoder: int, anatomy: str, threshold: int) -> float:
    absent = _without(results, anatomy)
    return _mean([float(r.every_decoder.curve[threshold, decoder, 1] > 0) for r in absent])


def _known_dice_at(results: Sequence[Result], decoder: int, threshold: int) -> float:
    counts = Counts(0, 0, 0, 0)
    for result in results:
        at_half = result.every_decoder.known[decoder]
        tp, fp = result.every_decoder.curve[threshold, decoder].tolist()
        counts += Counts(tp, fp, at_half.tp + at_half.fn - tp, at_half.fp + at_half.tn - fp)
    return counts.dice


def _auroc(results: Sequence[Result], decoder: int, anatomy: str) -> float:
    """The probability that a frame with the anatomy has a larger maximum than one without."""
    shown: dict[bool, list[np.float32]] = {True: [], False: []}
    for result in results:
        is_shown = _shows(result, anatomy)
        if is_shown is not None:
            shown[is_shown].append(result.every_decoder.highest[decoder])
    if not shown[True] or not shown[False]:
        return float("nan")
    statistic = mannwhitneyu(shown[True], shown[False]).statistic
    return float(statistic) / (len(shown[True]) * len(shown[False]))


def _overlap(results: Sequence[Result]) -> float:
    pixels = [sum(result.overlaps) for result in results]
    return sum(r.overlaps[2] for r in results) / sum(pixels) if pixels else float("nan")


def _with_mean(shares: dict[str, float]) -> Row:
    values = {name: _percent(share) for name, share in shares.items()}
    return {"mean": _percent(dice.mean(list(shares.values()))), **values}


def _mean(values: Sequence[float]) -> float:
    mean = dice.mean(values)
    return float("nan") if mean is None else mean


def _percent(share: float | None) -> float | None:
    return None if share is None or np.isnan(share) else round(100 * share, 1)


def _share(part: int, whole: int) -> float | None:
    return _percent(part / whole) if whole else None
