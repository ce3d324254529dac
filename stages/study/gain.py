"""``mtkd study gain`` and its like: students under several conditions, in tables.

Each table says how far a condition goes from the baseline to the teachers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import mean

from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MtkdError
from pipeline.evaluation.every_frame import summarise_all
from pipeline.evaluation.per_frame import summarise
from pipeline.files import write_atomically
from pipeline.machine import Machine
from pipeline.settings import Decoders, Distill, Training
from pipeline.training_errors import translated_errors
from stages.reporting.results_table import number
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.results import read
from stages.stores.imported import is_imported
from stages.stores.reader import open_stores
from stages.study.curves import write_curves
from stages.study.runs import Dice, RunResult, measure_all, prepare_page, tested
from stages.study.targets import PIXELS, Case, TargetKind

# Pretrained weights of each student, and its first and last learning rate.
STUDENTS = {
    "mininetv2": ("none", 5e-3, 5e-4),
    "segformer_b0": ("none", 1e-3, 1e-4),
    "deeplabv3_efficientnet_lite0": ("imagenet", 1e-3, 1e-4),
}
BASELINE = "baseline"
BALANCED = Distill(
    temperature=1, weight=30, softmax="classes_balanced", grid="stores", reconcile=False
)


@dataclass(frozen=True)
class Condition:
    """What a student is trained with: a column of the tables.

    Attributes:
        distill: as in :class:`stages.study.targets.Case`.
        targets: likewise.
        longer: how many times the epochs of the other conditions; below one where each of its
            epochs has more frames.
        class_weights: whether the loss on labels weighs rare classes up, also where
            ``student.class_weights`` is off.
        unlabelled: as in ``Case``.
        absence_weight: as in ``student``; None for what stands there.
        decoders: likewise.
    """

    distill: Distill | None = None
    targets: TargetKind = "stores"
    longer: float = 1
    class_weights: bool = False
    unlabelled: bool = True
    absence_weight: float | None = None
    decoders: Decoders | None = None


Conditions = dict[str, Condition]
# Without teachers, also longer and with Kolbinger's class weights; Shu's reference run; the other
# reading; ours; hard labels; and how ours and the baselines end.
GAIN: Conditions = {
    BASELINE: Condition(),
    "baseline, twice as long": Condition(longer=2),
    "baseline, class weights": Condition(class_weights=True),
    "pixels": Condition(PIXELS),
    "classes": Condition(
        Distill(temperature=1, weight=30, softmax="classes", grid="stores", reconcile=False)
    ),
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
# What students learn from where an anatomy is not, and what each part of it does.
RECONCILED = BALANCED.model_copy(update={"grid": "student", "reconcile": True})
ABSENCE: Conditions = {
    BASELINE: Condition(absence_weight=0.0),
    "baseline, known absence": Condition(absence_weight=0.2),
    "classes_balanced": Condition(
        RECONCILED.model_copy(update={"reconcile": False}), absence_weight=0.0
    ),
    "reconciled": Condition(RECONCILED, absence_weight=0.0),
    "reconciled, known absence": Condition(RECONCILED, absence_weight=0.2),
    "baseline, known absence, four times as long": Condition(longer=4, absence_weight=0.2),
    "reconciled, known absence, four times as long": Condition(
        RECONCILED, longer=4, absence_weight=0.2
    ),
}
# What a decoder for each anatomy is worth, with and without teachers.
DECODERS: Conditions = {
    BASELINE: Condition(absence_weight=0.2, decoders="separate"),
    "baseline, one decoder": Condition(absence_weight=0.2, decoders="shared"),
    "distilled": Condition(RECONCILED, absence_weight=0.2, decoders="separate"),
    "distilled, one decoder": Condition(RECONCILED, absence_weight=0.2, decoders="shared"),
}
STUDIES = {
    "gain": GAIN,
    "settings": SETTINGS,
    "beyond": BEYOND,
    "absence": ABSENCE,
    "decoders": DECODERS,
}
CLEAR = 5.0  # Dice that a teacher must be above the baseline for its anatomy to count in the gap
# By pixels, what the tables are of: the test surgeries, and those that choose settings.
TABLES = {
    "test": "test",
    "known": "test, all known pixels",
    "every": "test, every frame",
    "validation": "validation",
}
ABSENT = {
    "absent_area": "area claimed where absent, per seed",
    "overlap": "pixels of several organs, per seed",
}
Runs = Mapping[str, Sequence[RunResult]]  # by condition, one result per seed


@dataclass(frozen=True)
class Design:
    """Which students a study compares.

    Attributes:
        study: a key of :data:`STUDIES`.
        students: architectures, keys of :data:`STUDENTS`.
        conditions: which of the study's conditions, or none for all; the baseline is always among
            them.
        seeds: 1 .. seeds, of the students.
        epochs: of each student; conditions that are longer say so.
    """

    study: str
    students: Sequence[str]
    conditions: Sequence[str]
    seeds: int
    epochs: int


def run(project: Project, design: Design, jobs: int, output: Path, machine: Machine) -> None:
    """Train what is missing, print the tables and write them, with the curves beside.

    Args:
        project: whose frames, teachers and stores.
        design: what is compared.
        jobs: runs at the same time.
        output: Markdown; the curves are an SVG file of the same name.
        machine: where.

    Raises:
        MtkdError: a teacher or its store is missing or of another run, a student or a condition is
            not known, or ``output`` is not a Markdown file.
    """
    _require_known("--student", design.students, STUDENTS)
    _require_known("--way", design.conditions, _possible(design.study))
    more = len(project.distillation_frames()) / len(project.frames_of("train"))
    conditions = choose_conditions(project, design, more)
    prepare_page(output)
    if any(condition.distill for condition in conditions.values()):
        open_stores(project)  # refuses stores of other teachers, also where no run is missing
    results = measure_all(
        build_cases(project, design, conditions), project.study_runs, jobs, machine
    )
    teachers = _teachers(project, machine)
    runs = _by_student(results)
    curves = output.with_suffix(".svg")
    write_curves(curves, runs, _lengths(conditions, more))
    text = render_page(runs, teachers)
    write_atomically(output, f"{text}\n![Validation Dice over epochs]({curves.name})\n".encode())
    say(text)
    say(f"-> {output}")


def choose_conditions(project: Project, design: Design, more: float) -> Conditions:
    """The conditions of a study that are asked for, in its own order.

    Args:
        project: its settings say whether all students have class weights.
        design: what is asked for.
        more: how many times the labelled frames are in an epoch of distillation.

    Raises:
        MtkdError: the project does not have a condition.
    """
    conditions = STUDIES[design.study]
    if design.study == "gain" and more > 1:
        conditions = {**conditions, **_unlabelled_conditions(more)}
    if project.params.student.class_weights:
        # Every student has them: a condition that only adds them is the baseline again.
        conditions = {name: c for name, c in conditions.items() if not c.class_weights}
    _require_known("--way", design.conditions, conditions)
    wanted = {BASELINE, *(design.conditions or conditions)}
    return {name: condition for name, condition in conditions.items() if name in wanted}


def _possible(study: str) -> list[str]:
    """Names of a study's conditions, with those that only some projects have."""
    unlabelled = _unlabelled_conditions(2) if study == "gain" else {}
    return [*STUDIES[study], *unlabelled]


def _require_known(option: str, names: Sequence[str], valid_names: Collection[str]) -> None:
    for name in names:
        if name not in valid_names:
            raise MtkdError(f"{option} {name}: one of {'; '.join(valid_names)}")


def _unlabelled_conditions(more: float) -> Conditions:
    """Conditions where an epoch of distillation has ``more`` times the labelled frames.

    One without the frames that have no labels, and some in as many steps as without them. Epochs
    are whole ones, so as many steps are so many to the nearest epoch.
    """
    return {
        "classes_balanced, labelled frames": Condition(BALANCED, unlabelled=False),
        "classes_balanced, as many steps": Condition(BALANCED, longer=1 / more),
        "classes_balanced, twice as many steps": Condition(BALANCED, longer=2 / more),
    }


def build_cases(project: Project, design: Design, conditions: Conditions) -> list[Case]:
    """A case for each seed, student and condition; a student that is named twice counts once."""
    seeds = range(1, design.seeds + 1)
    cases = product(seeds, dict.fromkeys(design.students), conditions.items())
    return [
        _case(project, name, condition, arch, seed, design.epochs)
        for seed, arch, (name, condition) in cases
    ]


def _case(
    project: Project, name: str, condition: Condition, arch: str, seed: int, epochs: int
) -> Case:
    pretrained, rate, final = STUDENTS[arch]
    base = project.params.student
    student = Training.model_validate(
        base.model_dump()
        | {
            "arch": arch,
            "pretrained": pretrained,
            "learning_rate": rate,
            "final_learning_rate": final,
            "class_weights": base.class_weights or condition.class_weights,
            "absence_weight": (
                base.absence_weight
                if condition.absence_weight is None
                else condition.absence_weight
            ),
            "decoders": condition.decoders or base.decoders,
            "epochs": max(1, round(condition.longer * epochs)),
            "seed": seed,
        }
    )
    return Case(
        name,
        student,
        condition.distill,
        condition.targets,
        project.root,
        unlabelled=condition.unlabelled,
    )


def _by_student(results: Sequence[RunResult]) -> dict[str, dict[str, list[RunResult]]]:
    """Results by student and condition, in the order of the cases."""
    runs: dict[str, dict[str, list[RunResult]]] = {}
    for result in results:
        of_student = runs.setdefault(result.arch, {})
        of_student.setdefault(result.name, []).append(result)
    return runs


def _lengths(conditions: Conditions, more: float) -> dict[str, float]:
    """By condition, the frames of one of its epochs in epochs of the baseline."""
    return {
        name: more if condition.distill and condition.unlabelled else 1.0
        for name, condition in conditions.items()
    }


@translated_errors()
def _teachers(project: Project, machine: Machine) -> dict[str, Dice]:
    """The teachers' Dice by pixels, as :meth:`RunResult.dice_on` calls them.

    On the validation frames as its stage noted it.
    """
    anatomies = project.anatomies
    local = [a for a in anatomies if not is_imported(project.teacher_checkpoint(a))]
    validation = dict.fromkeys(anatomies)
    for anatomy in local:
        validation[anatomy] = read(project.teacher_metrics(anatomy))["val_dice"]["mean"]
    teachers = [load_checkpoint(project.teacher_checkpoint(anatomy))[0] for anatomy in local]
    results = tested(teachers, project, local, machine) if local else []
    everywhere = summarise_all(results, local)
    nothing = dict.fromkeys(anatomies)
    return {
        "test": summarise(results, anatomies)["dice"],
        "known": {"mean": None, **nothing, **everywhere["known_dice"]},
        "every": {"mean": None, **nothing, **everywhere["every_dice"]},
        "validation": {"mean": _mean(list(validation.values())), **validation},
    }


def render_page(runs: Mapping[str, Runs], teachers: Mapping[str, Dice]) -> str:
    """The tables of all students as Markdown.

    Args:
        runs: by student and condition, one result per seed.
        teachers: by pixels, the Dice of each teacher.
    """
    lines: list[str] = []
    for arch, runs_of_student in runs.items():
        lines += [f"### {arch}", ""]
        for pixels in TABLES:
            if _is_measured(runs_of_student, pixels):
                lines += [*_table(pixels, runs_of_student, teachers[pixels]), ""]
        lines += [*_everywhere(runs_of_student), ""]
    return "\n".join(lines)


def _table(split: str, runs: Runs, teachers: Dice) -> list[str]:
    """Dice per anatomy, the mean over seeds; below, what is closed of each baseline's gap."""
    means = {name: _means(split, seeds, teachers) for name, seeds in runs.items()}
    baselines = [name for name in runs if name.startswith(BASELINE)]
    clear = {name: _clear_anatomies(teachers, means[name]) for name in baselines}
    lines = [
        f"| Dice (%), {TABLES[split]} | teachers | {' | '.join(runs)} |",
        f"|---|{'---:|' * (len(runs) + 1)}",
    ]
    for anatomy in teachers:
        star = " *" if anatomy in clear[BASELINE] else ""
        cells = [number(means[name][anatomy]) for name in runs]
        lines.append(_row(f"{anatomy.replace('_', ' ')}{star}", number(teachers[anatomy]), cells))
    spans = [_span(split, seeds) for seeds in runs.values()]
    lines.append(_row("mean, lowest and highest seed", "", spans))
    for baseline, anatomies in clear.items():
        cells = [
            _shares(split, seeds, runs[baseline], teachers, anatomies) for seeds in runs.values()
        ]
        lines.append(_row(_gap_label(baseline, anatomies), "100", cells))
    return [*lines, _last_row(split, runs)]


def _is_measured(runs: Runs, pixels: str) -> bool:
    """Whether all runs have a mean Dice there."""
    all_runs = chain.from_iterable(runs.values())
    means = [run.dice_on(pixels).get("mean") for run in all_runs]
    return pixels in ("test", "validation") or None not in means


def _everywhere(runs: Runs) -> list[str]:
    """What students claim where nothing is, and several times; empty for runs of before."""
    if not _is_measured(runs, "known"):
        return []
    lines = [f"| test frames (%) | {' | '.join(runs)} |", f"|---|{'---:|' * len(runs)}"]
    for measure, title in ABSENT.items():
        cells = [_everywhere_of(seeds, measure) for seeds in runs.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _everywhere_of(seeds: Sequence[RunResult], measure: str) -> str:
    return " ".join(number((run.every_decoder or {})[measure]["mean"]) for run in seeds)


def _row(label: str, teachers: str, cells: Sequence[str]) -> str:
    of_teachers = f" {teachers} " if teachers else " "
    return f"| {label} |{of_teachers}| {' | '.join(cells)} |"


def _means(split: str, seeds: Sequence[RunResult], names: Iterable[str]) -> Dice:
    """By anatomy, and of ``mean``, the mean over seeds."""
    dice = [run.dice_on(split) for run in seeds]
    means: Dice = {}
    for name in names:
        means[name] = _mean([of_seed.get(name) for of_seed in dice])
    return means


def _clear_anatomies(teachers: Dice, baseline: Dice) -> list[str]:
    """Anatomies whose teacher is clearly above the baseline."""
    return [a for a in teachers if a != "mean" and _gap(teachers[a], baseline[a]) >= CLEAR]


def _gap(dice: float | None, baseline: float | None) -> float:
    """How far above the baseline; 0 where one of them was not measured."""
    return 0.0 if dice is None or baseline is None else dice - baseline


def _gap_label(baseline: str, anatomies: Sequence[str]) -> str:
    is_first = baseline == BASELINE
    against = "" if is_first else f" against {baseline}"
    star = " *" if is_first else ""
    return f"gap closed{against} (%), mean (per seed), over {len(anatomies)} anatomies{star}"


def _shares(
    split: str,
    seeds: Sequence[RunResult],
    baselines: Sequence[RunResult],
    teachers: Dice,
    anatomies: Sequence[str],
) -> str:
    """Shares of the gap: their mean and that of each seed.

    A dash where no teacher is clearly above the baseline.
    """
    shares = _present([_closed(split, run, baselines, teachers, anatomies) for run in seeds])
    if not shares:
        return "-"
    return f"**{mean(shares):.0f}** ({' '.join(f'{share:.0f}' for share in shares)})"


def _closed(
    split: str,
    run: RunResult,
    baselines: Sequence[RunResult],
    teachers: Dice,
    anatomies: Sequence[str],
) -> float | None:
    """(run - baseline) / (teachers - baseline) in percent; None without a gap.

    The baseline is that of the same seed.
    """
    (baseline,) = [b for b in baselines if b.seed == run.seed]
    dice = run.dice_on(split)
    base = baseline.dice_on(split)
    gained = sum(_gap(dice[a], base[a]) for a in anatomies)
    gap = sum(_gap(teachers[a], base[a]) for a in anatomies)
    return 100 * gained / gap if gap else None


def _span(split: str, seeds: Sequence[RunResult]) -> str:
    """The lowest and the highest mean, or a dash where nothing was measured."""
    means = _present([run.dice_on(split)["mean"] for run in seeds])
    return f"{min(means):.1f} .. {max(means):.1f}" if means else "-"


def _last_row(split: str, runs: Runs) -> str:
    """What an epoch takes, below the test surgeries; below the others whether runs converged."""
    if split == "test":
        return _row("seconds per epoch", "", [_seconds(seeds) for seeds in runs.values()])
    label = "last quarter of the epochs minus the one before"
    return _row(label, "", [_last_gains(seeds) for seeds in runs.values()])


def _seconds(seeds: Sequence[RunResult]) -> str:
    return f"{mean(run.seconds_per_epoch for run in seeds):.1f}"


def _last_gains(seeds: Sequence[RunResult]) -> str:
    return " ".join(_last_gain(run.val_dice) for run in seeds)


def _last_gain(values: Sequence[float | None]) -> str:
    """How much validation Dice still rose at the end: near 0 for a converged run.

    A dash where there is nothing to validate on.
    """
    quarter = max(1, len(values) // 4)
    last = _mean(values[-quarter:])
    before = _mean(values[-2 * quarter : -quarter])
    return "-" if last is None or before is None else f"{last - before:+.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    present = _present(values)
    return mean(present) if present else None


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
