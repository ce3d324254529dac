"""``mtkd study gain``: how much of the way from the baseline to the teachers each way of distilling goes."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from pipeline.machine import Machine
from pipeline.prepared import list_unlabelled
from pipeline.settings import Distill, Training
from stages.console import say
from stages.layout import METRICS, PREPARED_FRAMES, RESULTS
from stages.params import load_params
from stages.study import Case, measure_all
from stages.summary import read

OUTPUT = RESULTS / "study_gain.md"
# Where each student starts, and its learning rates.
STUDENTS = {
    "mininetv2": ("none", 5e-3, 5e-4),
    "segformer_b0": ("none", 1e-3, 1e-4),
    "deeplabv3_efficientnet_lite0": ("imagenet", 1e-3, 1e-4),
}
BASELINE, TWICE, WEIGHTED = "baseline", "baseline, twice as long", "baseline, class weights"
# Without teachers, also with Kolbinger's class weights; Shu's reference run; the other reading; ours; hard labels.
WAYS: dict[str, Distill | None] = {
    BASELINE: None,
    TWICE: None,
    WEIGHTED: None,
    "pixels": Distill(temperature=4, weight=3, softmax="pixels"),
    "classes": Distill(temperature=1, weight=30, softmax="classes"),
    "classes_balanced": Distill(temperature=1, weight=30, softmax="classes_balanced"),
    "pseudo_labels": Distill(temperature=1, weight=30, softmax="classes_balanced"),
}
LABELLED_ONLY = "classes_balanced, labelled frames"
CLEAR = 5.0  # Dice that a teacher must be above the baseline for its anatomy to count in the gap


def run(students: Sequence[str], seeds: int, epochs: int, jobs: int, output: Path, machine: Machine) -> None:
    """Train what is missing, print the tables and write them.

    Args:
        students: architectures.
        seeds: 1 .. seeds, of the students.
        epochs: of each student; the second baseline has twice as many.
        jobs: runs at the same time.
        output: Markdown.
        machine: where.

    Raises:
        MtkdError: the teachers were not evaluated yet.
    """
    teachers = read(METRICS / "evaluate.json")["teachers"]["dice"]
    # Where there are frames without labels, what they add is shown by leaving them out.
    ways = [*WAYS, LABELLED_ONLY] if list_unlabelled(PREPARED_FRAMES) else list(WAYS)
    cases = [_case(way, arch, seed, epochs) for arch in students for way in ways for seed in range(1, seeds + 1)]
    results = measure_all(cases, jobs, machine)
    text = "\n".join(line for arch in students for line in _table(arch, ways, teachers, results))
    write_atomically(output, text.encode())
    say(text)
    say(f"-> {output}")


def _case(way: str, arch: str, seed: int, epochs: int) -> Case:
    if arch not in STUDENTS:
        raise MtkdError(f"--student {arch}: one of {', '.join(STUDENTS)}")
    pretrained, rate, final = STUDENTS[arch]
    base = load_params().student
    student = Training.model_validate(
        base.model_dump()
        | {
            "arch": arch,
            "pretrained": pretrained,
            "learning_rate": rate,
            "final_learning_rate": final,
            "class_weights": way == WEIGHTED,
            "epochs": 2 * epochs if way == TWICE else epochs,
            "seed": seed,
        }
    )
    if way == LABELLED_ONLY:
        return Case(way, student, WAYS["classes_balanced"], unlabelled=False)
    return Case(way, student, WAYS[way], "pseudo_labels" if way == "pseudo_labels" else "stores")


def _table(
    arch: str, ways: Sequence[str], teachers: dict[str, float | None], results: Sequence[dict[str, Any]]
) -> list[str]:
    """One architecture: Dice per anatomy, the mean over seeds; below, the share of the gap that is closed, per seed."""
    own = {way: [r for r in results if r["arch"] == arch and r["name"] == way] for way in ways}
    means = {way: {key: _mean([r["dice"][key] for r in runs]) for key in teachers} for way, runs in own.items()}
    counted = [a for a in teachers if a != "mean" and _lead(teachers[a], means[BASELINE][a]) >= CLEAR]
    lines = [f"### {arch}", "", f"| Dice (%) | teachers | {' | '.join(ways)} |", f"|---|{'---:|' * (len(ways) + 1)}"]
    for key in teachers:
        cells = [_cell(teachers[key]), *(_cell(means[way][key]) for way in ways)]
        lines.append(f"| {key.replace('_', ' ')}{' *' if key in counted else ''} | {' | '.join(cells)} |")
    spans = [f"{min(found):.1f} .. {max(found):.1f}" for found in ([r["dice"]["mean"] for r in own[w]] for w in ways)]
    lines.append(f"| mean, lowest and highest seed | | {' | '.join(spans)} |")
    closed = [" ".join(f"{_closed(r, own[BASELINE], teachers, counted):.0f}" for r in own[way]) for way in ways]
    lines.append(f"| gap closed (%), per seed, over * | 100 | {' | '.join(closed)} |")
    seconds = [f"{mean(r['seconds_per_epoch'] for r in own[way]):.1f}" for way in ways]
    lines.append(f"| seconds per epoch | | {' | '.join(seconds)} |")
    best = [" ".join(f"{_last_gain(r):+.1f}" for r in own[way]) for way in ways]
    lines.append(f"| validation Dice of the last quarter over the one before | | {' | '.join(best)} |")
    return [*lines, ""]


def _closed(
    run: dict[str, Any], baselines: Sequence[dict[str, Any]], teachers: dict[str, Any], counted: Sequence[str]
) -> float:
    """(run - baseline) / (teachers - baseline) in percent, against the baseline of the same seed."""
    (base,) = [b for b in baselines if b["seed"] == run["seed"]]
    gained = sum(run["dice"][a] - base["dice"][a] for a in counted)
    gap = sum(teachers[a] - base["dice"][a] for a in counted)
    return 100 * gained / gap if gap else float("nan")


def _last_gain(run: dict[str, Any]) -> float:
    """How much validation Dice still rose at the end: near 0 for a converged run."""
    values, quarter = run["val_dice"], max(1, len(run["val_dice"]) // 4)
    return float(mean(values[-quarter:]) - mean(values[-2 * quarter : -quarter] or values[-quarter:]))


def _lead(teacher: float | None, baseline: float | None) -> float:
    return 0.0 if teacher is None or baseline is None else teacher - baseline


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
