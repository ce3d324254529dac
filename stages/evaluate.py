"""Stage ``evaluate``: teachers, baseline and distilled student on the test surgeries."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import read_annotations
from pipeline.checkpoint import load_card, load_checkpoint
from pipeline.deployment.overlay import strip
from pipeline.errors import MtkdError
from pipeline.evaluation import analysis
from pipeline.evaluation.every_frame import (
    Row,
    confusion_of_one_organ,
    curve,
    one_organ,
    summarise_all,
)
from pipeline.evaluation.per_frame import (
    Result,
    evaluate,
    outline_processes,
    predicted_masks,
    summarise,
)
from pipeline.files import emptied, write_json
from pipeline.machine import Machine
from pipeline.models.card import Card
from pipeline.models.network import Network
from pipeline.png_files import write_png
from pipeline.prepared import Frame, frames_digest, labels_digest, load_frame, load_label
from pipeline.settings import Params
from pipeline.timing.host import machine_record
from pipeline.training_errors import translated_errors
from stages.reporting.evaluation_tables import write_csv, write_per_frame, write_per_surgery
from stages.shared.console import progress, say
from stages.shared.project import Project
from stages.shared.remedies import stage_that_writes
from stages.shared.results import read
from stages.stores.imported import is_imported

STUDENTS = ("baseline", "mtkd")
# What metrics/summary.json holds beside the Dice of own frames, and of whom.
SUMMARISED = {
    "known_dice": ("mtkd", "gain"),
    "every_dice": ("mtkd", "gain"),
    "overlap": ("mtkd",),
}
Masks = dict[str, NDArray[np.bool_]]  # by a frame's id


@translated_errors()
def run(project: Project, machine: Machine) -> None:
    """Write metrics, their summary, tables, pictures, and what plots and the report need."""
    params = project.params
    anatomies = project.anatomies
    frames = project.frames_of("test")
    _require_fit(project)
    validated = {name: _validation_dice(project, name) for name in STUDENTS}
    results = {}
    masks = {}
    with outline_processes(machine) as processes:
        students = {name: _student(project, name) for name in STUDENTS}
        for name, student in students.items():
            results[name] = _evaluated(name, student, frames, anatomies, params, machine, processes)
        selected = _selected_frames(results["mtkd"])
        drawn = [frame for frame, _ in selected]
        for name, student in students.items():
            masks[name] = predicted_masks(student, drawn, anatomies, machine)
        del students, student  # teachers need the memory
        results["teachers"], masks["teachers"] = _teachers(
            project, frames, drawn, machine, processes
        )

    say("all frames are evaluated; intervals, calibration, confusion and pictures follow")
    order = ("teachers", *STUDENTS)
    results = {name: results[name] for name in order}
    tables = {name: _table(project, name, rows) for name, rows in results.items()}
    measured = {**tables, "gain": _gain(tables["mtkd"], tables["baseline"])}
    write_json(project.metrics / "evaluate.json", measured)
    write_json(project.metrics / "summary.json", _summary(validated, measured))
    write_per_frame(project.results / "per_frame.csv", results)
    write_per_surgery(project.results / "per_surgery.csv", results)
    write_json(
        project.results / "evaluation.json",
        {"machine": machine_record(machine), **_findings(project, results)},
    )
    _write_plots(project.results / "plots", results, tables, anatomies)
    _draw(project.results / "qualitative", selected, [masks[name] for name in order])
    for name, table in tables.items():
        say(f"{name:>8}: {_summary_line(table['dice'], anatomies)}")


def _table(project: Project, name: str, results: Sequence[Result]) -> dict[str, Row]:
    """Percent per measure and anatomy; teachers whose logits alone are here have none."""
    own = summarise(results, project.anatomies)
    here = _local(project) if name == "teachers" else project.anatomies
    return {**own, **summarise_all(results, here)}


def _summary(validated: Row, measured: Mapping[str, Mapping[str, Row]]) -> dict[str, Row]:
    """Few enough figures for a table of runs: to choose by, and to report."""
    tested = {name: table["dice"]["mean"] for name, table in measured.items()}
    figures = {"val_dice": validated, "test_dice": tested}
    for measure, networks in SUMMARISED.items():
        means = {name: measured[name][measure]["mean"] for name in networks}
        if any(mean is not None for mean in means.values()):
            figures[measure.removesuffix("_dice")] = means
    return figures


def _summary_line(dice: Mapping[str, float | None], anatomies: Sequence[str]) -> str:
    counted = sum(dice[anatomy] is not None for anatomy in anatomies)
    return (
        f"Dice {dice['mean']} over {counted} of {len(anatomies)} anatomies"
        if counted
        else "nothing to measure"
    )


def _require_fit(project: Project) -> None:
    """Refuse checkpoints of other settings before anything is measured.

    Decoders are told apart by their place, and a size is not seen in the weights.

    Raises:
        MtkdError: checkpoints that were trained for other anatomies, in another order, or at
            another size, together.
    """
    expected = {project.student_checkpoint(name): project.anatomies for name in STUDENTS}
    expected |= {project.teacher_checkpoint(a): [a] for a in project.anatomies}
    problems = []
    for path, anatomies in expected.items():
        if is_imported(path):
            continue
        differences = list(_differences(load_card(path), anatomies, project.params.data.image_size))
        if differences:
            stage = stage_that_writes(path, project.root)
            trained = "; ".join(differences)
            problems.append(f"{path} was trained for {trained}: run `dvc repro {stage}`")
    if problems:
        raise MtkdError("\n  ".join(problems))


def _differences(card: Card, anatomies: list[str], size: tuple[int, int]) -> Iterator[str]:
    """What a checkpoint was trained for, where params.yaml asks for something else."""
    if list(card.anatomies) != anatomies:
        yield _asked("anatomies", card.anatomies, anatomies)
    if card.image_size != size:
        yield _asked("image_size", card.image_size, size)


def _asked(key: str, trained: Sequence[object], expected: Sequence[object]) -> str:
    return f"{key} {_listed(trained)}, params.yaml asks for {_listed(expected)}"


def _listed(values: Sequence[object]) -> str:
    return f"[{', '.join(map(str, values))}]"


def _student(project: Project, name: str) -> Network:
    return load_checkpoint(project.student_checkpoint(name))[0]


def _evaluated(
    name: str,
    network: Network | Sequence[Network],
    frames: list[Frame],
    anatomies: Sequence[str],
    params: Params,
    machine: Machine,
    processes: Executor | None,
) -> list[Result]:
    batch_size = params.evaluate.batch_size
    tolerance = params.evaluate.tolerance
    results = []
    with progress(f"{name}: frames evaluated") as bar:
        for result in evaluate(
            network, frames, anatomies, batch_size, tolerance, machine, processes
        ):
            results.append(result)
            bar(len(results), len(frames))
    return results


def _teachers(
    project: Project,
    frames: list[Frame],
    drawn: Sequence[Frame],
    machine: Machine,
    processes: Executor | None,
) -> tuple[list[Result], Masks]:
    """All teachers that are here, on frames of their anatomies, and masks of those drawn."""
    here = _local(project)
    teachers = [load_checkpoint(project.teacher_checkpoint(anatomy))[0] for anatomy in here]
    if not teachers:
        return [], {}
    asked = [frame for frame in frames if frame.anatomy in here]
    results = _evaluated("teachers", teachers, asked, here, project.params, machine, processes)
    shown = [frame for frame in drawn if frame.anatomy in here]
    return results, predicted_masks(teachers, shown, here, machine)


def _local(project: Project) -> list[str]:
    """The anatomies whose teacher is here, and not its logits alone."""
    return [a for a in project.anatomies if not is_imported(project.teacher_checkpoint(a))]


def _gain(
    new: dict[str, dict[str, float | None]], old: dict[str, dict[str, float | None]]
) -> dict[str, dict[str, float | None]]:
    """Difference in percentage points, None where there is nothing to compare."""

    def minus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else round(a - b, 1)

    gain = {}
    for metric, values in new.items():
        gain[metric] = {key: minus(value, old[metric][key]) for key, value in values.items()}
    return gain


def _validation_dice(project: Project, name: str) -> float | None:
    """Mean Dice (%) of a student on the validation surgeries, as its training left it."""
    dice: float | None = read(project.student_metrics(name))["val_dice"]["mean"]
    return dice


def _findings(project: Project, results: Mapping[str, list[Result]]) -> dict[str, object]:
    anatomies = project.anatomies
    beside = [project.prepared_labels / "test" / anatomy for anatomy in anatomies]
    frames = project.frames_of("test")
    return {
        "test_frames": frames_digest(frames),
        "test_labels": labels_digest(frames),
        "surgeries": len({r.surgery for r in results["mtkd"]}),
        "tolerance": project.params.evaluate.tolerance,
        "intervals": {name: analysis.intervals(rows, anatomies) for name, rows in results.items()},
        "difference": analysis.difference(results["mtkd"], results["baseline"], anatomies),
        **_of_students({name: results[name] for name in STUDENTS}, anatomies),
        "calibration": {
            name: analysis.calibrated(rows, anatomies) for name, rows in results.items()
        },
        "annotators": {
            anatomy: analysis.annotators(read_annotations(folder))
            for anatomy, folder in zip(anatomies, beside, strict=True)
        },
    }


def _of_students(
    results: Mapping[str, list[Result]], anatomies: Sequence[str]
) -> dict[str, object]:
    """What is said of every decoder, by figure and student."""
    figures = {
        "false_alarms": analysis.false_alarms,
        "confusion": analysis.confusion,
        "one_organ": one_organ,
        "confusion_of_one_organ": confusion_of_one_organ,
        "alarms": curve,
    }
    found: dict[str, object] = {
        "claimants": {name: analysis.overlaps(rows) for name, rows in results.items()}
    }
    for figure, function in figures.items():
        found[figure] = {name: function(rows, anatomies) for name, rows in results.items()}
    return found


def _write_plots(
    folder: Path,
    results: Mapping[str, list[Result]],
    tables: Mapping[str, dict[str, dict[str, float | None]]],
    anatomies: Sequence[str],
) -> None:
    """Tables in the form that `dvc plots` draws."""
    bars = [
        (anatomy, name, tables[name]["dice"][anatomy])
        for anatomy, name in product(("mean", *anatomies), tables)
    ]
    write_csv(folder / "dice.csv", ("anatomy", "network", "dice"), bars)
    for name in STUDENTS:
        cells: list[tuple[object, ...]] = []
        for labelled, row in analysis.confusion(results[name], anatomies).items():
            cells += [(labelled, decoder, percent) for decoder, percent in row.items()]
        write_csv(folder / f"confusion_{name}.csv", ("labelled", "decoder", "percent"), cells)


def _selected_frames(results: Sequence[Result]) -> list[tuple[Frame, str]]:
    """Per anatomy, the frames with the best, the median and the worst Dice.

    They are selected by this rule, not by hand. A frame without Dice, on which nothing is labelled
    or predicted, is selected only where there is no other.
    """
    selected = []
    for anatomy in dict.fromkeys(row.frame.anatomy for row in results):
        anatomy_results = [r for r in results if r.frame.anatomy == anatomy]
        rows = (
            sorted(
                (r for r in anatomy_results if not np.isnan(r.counts.dice)),
                key=lambda r: r.counts.dice,
            )
            or anatomy_results
        )
        picks = {"best": rows[-1], "median": rows[len(rows) // 2], "worst": rows[0]}
        selected += [(row.frame, rule) for rule, row in picks.items()]
    return selected


def _draw(folder: Path, selected: Sequence[tuple[Frame, str]], masks: Sequence[Masks]) -> None:
    """One strip per frame: frame, label and each network's mask.

    The mask of a teacher that is not here is empty.
    """
    emptied(folder)
    for frame, rule in selected:
        label = load_label(frame.label) == 1
        columns = [label, *(by_frame.get(frame.id, np.zeros_like(label)) for by_frame in masks)]
        write_png(folder / f"{frame.anatomy}-{rule}.png", strip(load_frame(frame.image), columns))
