"""From results on frames to what a reader asks: how sure, how often wrongly claimed, confused with what, calibrated?

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
from pipeline.evaluation.per_frame import METRICS, Result

TOO_FEW = "too few"


def intervals(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, Any]:
    """Per metric and anatomy (and ``mean``): mean, ends of the 95 % interval, number of surgeries behind them."""
    return {
        metric: _table(estimates(_values(results, metric), anatomies), metric) for metric in METRICS
    }


def difference(
    new: Sequence[Result], old: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, Any]:
    """What ``new`` is above ``old``, paired by surgery: intervals, and Wilcoxon's p over surgeries or "too few"."""
    found: dict[str, Any] = {}
    for metric in METRICS:
        pairs = paired(_values(new, metric), _values(old, metric))
        p = significance(pairs)
        found[metric] = {
            "intervals": _table(estimates(pairs, anatomies), metric),
            "p": TOO_FEW if p is None else round(p, 4),
        }
    return found


def _values(results: Sequence[Result], metric: str) -> list[Value]:
    return [Value(r.surgery, r.frame.anatomy, r.value(metric)) for r in results]


def _table(found: Mapping[str, Estimate], metric: str) -> dict[str, dict[str, float | None]]:
    unit = 1 if metric == "hd95" else 100
    return {
        name: {key: _rounded(unit * getattr(one, key)) for key in ("mean", "low", "high")}
        | {"surgeries": one.surgeries}
        for name, one in found.items()
    }


def per_surgery(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per surgery and anatomy: frames, and the mean of every metric."""
    rows = []
    for surgery, anatomy in sorted(
        {(r.surgery, r.frame.anatomy) for r in results}, key=_numbers_first
    ):
        own = [r for r in results if (r.surgery, r.frame.anatomy) == (surgery, anatomy)]
        means = {m: dice.mean([r.value(m) for r in own]) for m in METRICS}
        rows.append({"surgery": surgery, "anatomy": anatomy, "frames": len(own), **means})
    return rows


def _numbers_first(
    surgery_and_anatomy: tuple[str | int, str],
) -> tuple[bool, tuple[str | int, str]]:
    return isinstance(surgery_and_anatomy[0], str), surgery_and_anatomy


def false_alarms(
    results: Sequence[Result], anatomies: Sequence[str], presence: Mapping[str, Mapping[str, bool]]
) -> dict[str, Any]:
    """Per anatomy, over the frames of which somebody said that it is not there.

    Args:
        results: of a network with a decoder for each anatomy.
        anatomies: the decoders.
        presence: from a frame's id to which anatomies it shows.

    Returns:
        Number of such frames, the percentage of them in which its decoder claims a pixel, and the
        mean percentage of the frame that it then claims.
    """
    found = {}
    for i, anatomy in enumerate(anatomies):
        absent = [r for r in results if presence.get(r.frame.id, {}).get(anatomy) is False]
        shares = [r.claimed[i] / sum(r.claimants) for r in absent if r.claimed[i]]
        found[anatomy] = {
            "frames": len(absent),
            "claimed": _percent(len(shares) / len(absent)) if absent else None,
            "pixels": _percent(sum(shares) / len(shares)) if shares else None,
        }
    return found


def confusion(
    results: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """For each labelled anatomy, the percentage of its labelled pixels that each decoder claims."""
    table = {}
    for labelled in anatomies:
        own = [r for r in results if r.frame.anatomy == labelled]
        pixels = sum(r.counts.tp + r.counts.fn for r in own)
        table[labelled] = {
            decoder: _percent(sum(r.inside[i] for r in own) / pixels) if pixels else None
            for i, decoder in enumerate(anatomies)
        }
    return table


def claimants(results: Sequence[Result]) -> dict[str, float | None]:
    """The percentage of all pixels that no decoder, one, or several claim."""
    sums = [sum(r.claimants[i] for r in results) for i in range(3)]
    shares = [_percent(n / sum(sums)) if sum(sums) else None for n in sums]
    return dict(zip(("none", "one", "several"), shares, strict=True))


def calibrated(
    results: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    """Per anatomy, over the pixels of its own frames: expected calibration error and Brier score, in percent."""
    found: dict[str, dict[str, float] | None] = {}
    for anatomy in anatomies:
        own = [r.calibration for r in results if r.frame.anatomy == anatomy]
        found[anatomy] = None
        if own:
            together = total(own)
            found[anatomy] = {
                "ece": round(100 * together.ece, 2),
                "brier": round(100 * together.brier, 2),
            }
    return found


def annotators(annotations: Sequence[Annotation]) -> dict[str, dict[str, float | None]]:
    """Each single annotator's mean Dice (percent) against the consensus, and over how many frames.

    As for the networks, a frame on which both are empty has no Dice and is not counted.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in sorted({a.annotator for a in annotations}):
        values = [a.counts.dice for a in annotations if a.annotator == name]
        mean = dice.mean(values)
        frames = sum(not isnan(value) for value in values)
        found[name] = {"dice": None if mean is None else _percent(mean), "frames": frames}
    return found


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _rounded(value: float) -> float | None:
    # Tables show one digit: of two, it would now and then be another than in metrics/evaluate.json.
    return None if isnan(value) else round(value, 4)
