"""``mtkd study gain``, ``settings`` and ``beyond``: how far from baseline to teachers each way of distilling goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MtkdError
from pipeline.evaluation.per_frame import evaluate, summarise
from pipeline.files import write_atomically
from pipeline.machine import Machine
from pipeline.settings import Distill, Training
from pipeline.training_errors import mendable
from stages.reporting.results_table import number
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.results import read
from stages.stores.imported import is_imported
from stages.stores.reader import open_stores
from stages.study.curves import write_curves
from stages.study.runs import measure_all, prepare_page
from stages.study.targets import PIXELS, Case, TargetKind

# Where each student starts, and its learning rates.
STUDENTS = {
    "mininetv2": ("none", 5e-3, 5e-4),
    "segformer_b0": ("none", 1e-3, 1e-4),
    "deeplabv3_efficientnet_lite0": ("imagenet", 1e-3, 1e-4),
}
BASELINE = "baseline"
BALANCED = Distill(temperature=1, weight=30, softmax="classes_balanced")


@dataclass(frozen=True)
class Condition:
    """One way of teaching a student.

    Attributes:
        distill: as in :class:`stages.study.targets.Case`.
        targets: likewise.
        longer: how many times the epochs of the other ways; below one where each of its epochs has
            more frames.
        class_weights: whether the loss on labels weighs rare classes up, also where
            ``student.class_weights`` is off.
        unlabelled: as in ``Case``.
    """

    distill: Distill | None = None
    targets: TargetKind = "stores"
    longer: float = 1
    class_weights: bool = False
    unlabelled: bool = True


Conditions = dict[str, Condition]
# Without teachers, also longer and with Kolbinger's class weights; Shu's reference run; the other
# reading; ours; hard labels; and how ours and the baselines end.
GAIN: Conditions = {
    BASELINE: Condition(),
    "baseline, twice as long": Condition(longer=2),
    "baseline, class weights": Condition(class_weights=True),
    "pixels": Condition(PIXELS),
    "classes": Condition(Distill(temperature=1, weight=30, softmax="classes")),
    "classes_balanced": Condition(BALANCED),
    "pseudo_labels": Condition(BALANCED, "pseudo_labels"),
    "baseline, four times as long": Condition(longer=4),
    "classes_balanced, four times as long": Condition(BALANCED, longer=4),
    "baseline, class weights, four times as long": Condition(class_weights=True, longer=4),
}
# Ours, one setting at a time changed.
SETTINGS: Conditions = {
    BASELINE: Condition(),
    "classes_balanced": Condition(BALANCED),
    "T = 2": Condition(BALANCED.model_copy(update={"temperature": 2.0})),
    "T = 4": Condition(BALANCED.model_copy(update={"temperature": 4.0})),
    "weight 10": Condition(BALANCED.model_copy(update={"weight": 10.0})),
    "weight 90": Condition(BALANCED.model_copy(update={"weight": 90.0})),
    "half the grid": Condition(BALANCED, "coarse"),
}
# What the paper does not do, beside what the default is.
BEYOND: Conditions = {
    BASELINE: Condition(),
    "classes_balanced": Condition(BALANCED),
    "trusted teachers": Condition(BALANCED, "trusted"),
    "and pixels": Condition(BALANCED, "with_pixels"),
    "other organs apart": Condition(BALANCED, "apart"),
    "on the student's grid": Condition(BALANCED.model_copy(update={"grid": "student"})),
}
STUDIES = {"gain": GAIN, "settings": SETTINGS, "beyond": BEYOND}
CLEAR = 5.0  # Dice that a teacher must be above the baseline for its anatomy to count in the gap
Dice = dict[str, float | None]  # percent per anatomy, and "mean"
# What is told of each run: on the test surgeries, and on those that choose settings.
WHERE = {"dice": "test", "validation": "validation"}


def run(
    project: Project,
    name: str,
    students: Sequence[str],
    ways: Sequence[str],
    seeds: int,
    epochs: int,
    jobs: int,
    output: Path,
    machine: Machine,
) -> None:
    """Train what is missing, print the tables and write them, with the curves beside.

    Args:
        project: whose frames, teachers and stores.
        name: of the study, a key of :data:`STUDIES`.
        students: architectures.
        ways: which of the study's ways; the baseline is always among them.
        seeds: 1 .. seeds, of the students.
        epochs: of each student; ways that are longer say so.
        jobs: runs at the same time.
        output: Markdown; the curves are an SVG file of the same name.
        machine: where.

    Raises:
        MtkdError: a teacher or its store is missing or of another run, a student or a way is not
            known, or ``output`` is no Markdown file.
    """
    known = STUDIES[name]
    params = project.params
    more = len(project.distillation_frames()) / len(project.frames_of("train"))
    if name == "gain" and more > 1:
        known = {**known, **_unlabelled_conditions(more)}
    if params.student.class_weights:
        # Every student has them: a way that only adds them is none of its own.
        known = {way: how for way, how in known.items() if not how.class_weights}
    students = list(dict.fromkeys(students))
    for chosen, option, choices in ((students, "--student", STUDENTS), (ways, "--way", known)):
        for one in chosen:
            if one not in choices:
                raise MtkdError(f"{option} {one}: one of {'; '.join(choices)}")
    shown = [way for way in known if way == BASELINE or not ways or way in ways]
    prepare_page(output)
    if any(known[way].distill for way in shown):
        open_stores(project)  # refuses stores of other teachers, also where no run is missing
    cases = [
        _case(project, way, known[way], arch, seed, epochs)
        for seed in range(1, seeds + 1)
        for arch in students
        for way in shown
    ]
    results = measure_all(cases, jobs, machine)
    teachers = _teachers(project, machine)
    runs = {
        arch: {way: [r for r in results if (r["arch"], r["name"]) == (arch, way)] for way in shown}
        for arch in students
    }
    text = "\n".join(line for arch in students for line in _tables(arch, runs[arch], teachers))
    curves = output.with_suffix(".svg")
    write_curves(
        curves,
        runs,
        {way: more if known[way].distill and known[way].unlabelled else 1.0 for way in shown},
    )
    write_atomically(output, f"{text}\n![Validation Dice over epochs]({curves.name})\n".encode())
    say(text)
    say(f"-> {output}")


def _unlabelled_conditions(more: float) -> Conditions:
    """Where an epoch has ``more`` times the frames, of which most have no labels: without these, and in as many steps.

    Epochs are whole ones, so as many steps are so many to the nearest epoch.
    """
    return {
        "classes_balanced, labelled frames": Condition(BALANCED, unlabelled=False),
        "classes_balanced, as many steps": Condition(BALANCED, longer=1 / more),
        "classes_balanced, twice as many steps": Condition(BALANCED, longer=2 / more),
    }


def _case(project: Project, name: str, way: Condition, arch: str, seed: int, epochs: int) -> Case:
    pretrained, rate, final = STUDENTS[arch]
    base = project.params.student
    student = Training.model_validate(
        base.model_dump()
        | {
            "arch": arch,
            "pretrained": pretrained,
            "learning_rate": rate,
            "final_learning_rate": final,
            "class_weights": base.class_weights or way.class_weights,
            "epochs": max(1, round(way.longer * epochs)),
            "seed": seed,
        }
    )
    return Case(name, student, way.distill, way.targets, project.root, unlabelled=way.unlabelled)


@mendable("lower evaluate.batch_size, or choose another --device")
def _teachers(project: Project, machine: Machine) -> dict[str, Dice]:
    """The teachers' Dice, each on its own anatomy's frames: test, and validation as its stage noted it."""
    params = project.params
    anatomies = project.anatomies
    here = [a for a in anatomies if not is_imported(project.teacher_checkpoint(a))]
    results, validation = [], dict.fromkeys(anatomies)
    for anatomy in here:
        teacher, _ = load_checkpoint(
            project.teacher_checkpoint(anatomy), f"train_teacher@{anatomy}"
        )
        results += list(
            evaluate(
                teacher,
                project.frames_of("test", [anatomy]),
                [anatomy],
                params.evaluate.batch_size,
                None,
                machine,
            )
        )
        validation[anatomy] = read(project.teacher_metrics(anatomy))["val_dice"]["mean"]
    return {
        "dice": summarise(results, anatomies)["dice"],
        "validation": {"mean": _mean(list(validation.values())), **validation},
    }


def _tables(
    arch: str, own: dict[str, list[dict[str, Any]]], teachers: dict[str, Dice]
) -> list[str]:
    """One architecture: Dice per anatomy, the mean over seeds; below, what is closed of each baseline's gap."""
    lines = [f"### {arch}", ""]
    for key, where in WHERE.items():
        lines += [*_table(key, where, own, teachers[key]), ""]
    return lines


def _table(key: str, where: str, own: dict[str, list[dict[str, Any]]], teachers: Dice) -> list[str]:
    means = {
        way: {name: _mean([r[key].get(name) for r in runs]) for name in teachers}
        for way, runs in own.items()
    }
    counted = {
        baseline: [
            a for a in teachers if a != "mean" and _lead(teachers[a], means[baseline][a]) >= CLEAR
        ]
        for baseline in own
        if baseline.startswith(BASELINE)
    }
    lines = [
        f"| Dice (%), {where} | teachers | {' | '.join(own)} |",
        f"|---|{'---:|' * (len(own) + 1)}",
    ]
    for name in teachers:
        cells = [number(teachers[name]), *(number(means[way][name]) for way in own)]
        lines.append(
            f"| {name.replace('_', ' ')}{' *' if name in counted[BASELINE] else ''} | "
            f"{' | '.join(cells)} |"
        )
    spans = [_span([r[key]["mean"] for r in runs]) for runs in own.values()]
    lines.append(f"| mean, lowest and highest seed | | {' | '.join(spans)} |")
    for baseline, clear in counted.items():
        against, star = ("", " *") if baseline == BASELINE else (f" against {baseline}", "")
        cells = [
            _shares([_closed(key, r, own[baseline], teachers, clear) for r in runs])
            for runs in own.values()
        ]
        label = f"gap closed{against} (%), mean (per seed), over {len(clear)} anatomies{star}"
        lines.append(f"| {label} | 100 | {' | '.join(cells)} |")
    if key == "dice":
        seconds = [f"{mean(r['seconds_per_epoch'] for r in runs):.1f}" for runs in own.values()]
        lines.append(f"| seconds per epoch | | {' | '.join(seconds)} |")
    else:
        rises = [" ".join(_last_gain(r["val_dice"]) for r in runs) for runs in own.values()]
        lines.append(f"| last quarter of the epochs minus the one before | | {' | '.join(rises)} |")
    return lines


def _closed(
    key: str,
    run: dict[str, Any],
    baselines: Sequence[dict[str, Any]],
    teachers: Dice,
    counted: Sequence[str],
) -> float | None:
    """(run - baseline) / (teachers - baseline) in percent, against the baseline of the same seed; None: no gap."""
    (base,) = [b for b in baselines if b["seed"] == run["seed"]]
    gained = sum(run[key][a] - base[key][a] for a in counted)
    gap = sum((teachers[a] or 0.0) - base[key][a] for a in counted)
    return 100 * gained / gap if gap else None


def _shares(seeds: Sequence[float | None]) -> str:
    """Their mean and each of them, or a dash where no teacher is clearly above the baseline."""
    known = _known(seeds)
    return f"**{mean(known):.0f}** ({' '.join(f'{seed:.0f}' for seed in known)})" if known else "-"


def _span(values: Sequence[float | None]) -> str:
    """The lowest and the highest, or a dash where nothing was measured."""
    known = _known(values)
    return f"{min(known):.1f} .. {max(known):.1f}" if known else "-"


def _last_gain(values: Sequence[float | None]) -> str:
    """How much validation Dice still rose at the end: near 0 for a converged run; a dash where nothing tells."""
    quarter = max(1, len(values) // 4)
    last, before = _mean(values[-quarter:]), _mean(values[-2 * quarter : -quarter])
    return "-" if last is None or before is None else f"{last - before:+.1f}"


def _lead(teacher: float | None, baseline: float | None) -> float:
    return 0.0 if teacher is None or baseline is None else teacher - baseline


def _mean(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return mean(known) if known else None


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
