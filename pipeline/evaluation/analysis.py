"""Figures of a report from results on frames: intervals, false alarms, confusion, calibration.

All are plain numbers, ready for JSON; shares are percentages. None stands where there is nothing to
measure.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from pipeline.annotations import Annotation
from pipeline.evaluation import dice
from pipeline.evaluation.bootstrap import Estimate, Value, estimates, paired, significance
from pipeline.evaluation.calibration import total
from pipeline.evaluation.every_frame import distinct
from pipeline.evaluation.per_frame import MEASURES, Result

TOO_FEW = "too few"


def intervals(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Any]:
    """The mean and the ends of its 95 % interval, per measure and anatomy, and under ``mean``.

    Each comes with the number of surgeries behind it.
    """
    return {
        measure: _table(estimates(_values(results, measure), anatomies), measure)
        for measure in MEASURES
    }


def difference(
    new: Sequence[Result], old: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, Any]:
    """By how much ``new`` exceeds ``old`` on the same frames, per measure.

    Returns:
        Per measure ``intervals`` of the difference, paired by surgery, and ``p`` of Wilcoxon's test
        over surgeries, or "too few".
    """
    differences: dict[str, Any] = {}
    for measure in MEASURES:
        pairs = paired(_values(new, measure), _values(old, measure))
        p = significance(pairs)
        differences[measure] = {
            "intervals": _table(estimates(pairs, anatomies), measure),
            "p": TOO_FEW if p is None else round(p, 4),
        }
    return differences


def _values(results: Sequence[Result], measure: str) -> list[Value]:
    return [Value(r.surgery, r.frame.anatomy, r.value(measure)) for r in results]


def _table(by_name: Mapping[str, Estimate], measure: str) -> dict[str, dict[str, float | None]]:
    unit = 1 if measure == "hd95" else 100
    return {name: _row(estimate, unit) for name, estimate in by_name.items()}


def _row(estimate: Estimate, unit: int) -> dict[str, float | None]:
    return {
        "mean": _rounded(unit * estimate.mean),
        "low": _rounded(unit * estimate.low),
        "high": _rounded(unit * estimate.high),
        "surgeries": estimate.surgeries,
    }


def per_surgery(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per surgery and anatomy: frames, and the mean of every measure."""
    rows = []
    keys = {(r.surgery, r.frame.anatomy) for r in results}
    for surgery, anatomy in sorted(keys, key=_numbers_first):
        group = [r for r in results if (r.surgery, r.frame.anatomy) == (surgery, anatomy)]
        means = {measure: _mean(group, measure) for measure in MEASURES}
        rows.append({"surgery": surgery, "anatomy": anatomy, "frames": len(group), **means})
    return rows


def _numbers_first(
    surgery_and_anatomy: tuple[str | int, str],
) -> tuple[bool, tuple[str | int, str]]:
    return isinstance(surgery_and_anatomy[0], str), surgery_and_anatomy


def _mean(results: Sequence[Result], measure: str) -> float | None:
    return dice.mean([r.value(measure) for r in results])


def false_alarms(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Any]:
    """Per anatomy, over the frames that are annotated as not showing it.

    Args:
        results: of a network with a decoder for each anatomy.
        anatomies: the decoders.

    Returns:
        ``frames``: number of such frames. ``claimed``: the percentage of them in which the decoder
        predicts a pixel. ``pixels``: the mean percentage of the frame that it then predicts.
    """
    alarms = {}
    once = distinct(results)
    for i, anatomy in enumerate(anatomies):
        absent = [r for r in once if r.frame.shows.get(anatomy) is False]
        shares = [r.predicted[i] / sum(r.overlaps) for r in absent if r.predicted[i]]
        alarms[anatomy] = {
            "frames": len(absent),
            "claimed": _share(len(shares), len(absent)),
            "pixels": _share(sum(shares), len(shares)),
        }
    return alarms


def confusion(
    results: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """The percentage of each anatomy's labelled pixels that each decoder predicts.

    Returns:
        By the labelled anatomy, then by the decoder's.
    """
    table = {}
    for labelled in anatomies:
        group = [r for r in results if r.frame.anatomy == labelled]
        pixels = sum(r.counts.tp + r.counts.fn for r in group)
        table[labelled] = {
            decoder: _share(_inside(group, i), pixels) for i, decoder in enumerate(anatomies)
        }
    return table


def _inside(results: Sequence[Result], decoder: int) -> int:
    """Labelled pixels that a decoder predicts."""
    return sum(r.inside[decoder] for r in results)


def overlaps(results: Sequence[Result]) -> dict[str, float | None]:
    """The percentage of all pixels that no decoder, one, or several predict."""
    none, single, several = (_overlapping(results, i) for i in range(3))
    pixels = none + single + several
    return {
        "none": _share(none, pixels),
        "one": _share(single, pixels),
        "several": _share(several, pixels),
    }


def _overlapping(results: Sequence[Result], i: int) -> int:
    return sum(r.overlaps[i] for r in results)


def calibrated(
    results: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    """Expected calibration error and Brier score in percent, per anatomy.

    They are over the pixels of the frames that are labelled for it; None without such frames.
    """
    scores: dict[str, dict[str, float] | None] = {}
    for anatomy in anatomies:
        own = [r.calibration for r in results if r.frame.anatomy == anatomy]
        parts = [each for each in own if each.pixels.any()]
        scores[anatomy] = None
        if parts:
            together = total(parts)
            scores[anatomy] = {
                "ece": round(100 * together.ece, 2),
                "brier": round(100 * together.brier, 2),
            }
    return scores


def annotators(annotations: Sequence[Annotation]) -> dict[str, dict[str, float | None]]:
    """Each single annotator's mean Dice (percent) against the consensus, and over how many frames.

    As for the networks, a frame on which both are empty has no Dice and is not counted.
    """
    scores: dict[str, dict[str, float | None]] = {}
    for name in sorted({a.annotator for a in annotations}):
        values = [a.counts.dice for a in annotations if a.annotator == name]
        mean = dice.mean(values)
        frames = sum(not isnan(value) for value in values)
        scores[name] = {"dice": None if mean is None else _percent(mean), "frames": frames}
    return scores


def _share(part: float, whole: float) -> float | None:
    return _percent(part / whole) if whole else None


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _rounded(value: float) -> float | None:
    # Tables show one digit: of two, it would now and then be another than in metrics/evaluate.json.
    return None if isnan(value) else round(value, 4)
