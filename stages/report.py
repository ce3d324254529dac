"""Stage ``report``: one self-contained HTML page that opens from disk."""

import base64
import csv
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.evaluation.bootstrap import FEWEST_SURGERIES
from pipeline.files import write_atomically
from pipeline.settings import Params
from stages.reporting import report_charts
from stages.reporting.paper_tables import table
from stages.reporting.results_table import (
    EVERY_DECODER,
    number,
    print_results,
    results,
    same_anatomies,
)
from stages.shared.project import Project
from stages.shared.results import read

# Titles of the panels, and where dvclive keeps the values.
QUANTITIES = {
    "validation Dice (%)": ("val_dice", "mean"),
    "cross-entropy, sum": ("cross_entropy", "sum"),
    "divergence, sum": ("kl_divergence", "sum"),
}
RULES = ("best", "median", "worst")
# The split of Kolbinger et al., on which the paper's figures hold.
PAPER_TEST = {2, 7, 11, 13, 14, 18, 20, 32}
PAPER_ANATOMIES = 11
# What a run writes, and what only tells of it: so the same run gives the same page once it is
# committed.
EXCLUDED = ("dvc.lock", "metrics", "results", "docs", "*.md", "tests")


def run(project: Project) -> None:
    """Write the page and print the table of results.

    Raises:
        MtkdError: a file that an earlier stage writes is missing or damaged.
    """
    template = (files("stages") / "templates" / "report.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"plain": lambda name: name.replace("_", " ")}
    page = environment.from_string(template).render(_template_values(project))
    write_atomically(project.report, page.encode())
    print_results(project)


def _template_values(project: Project) -> dict[str, Any]:
    """Everything that the template names."""
    rows = results(project)
    dice = _dice_of_frames(project.results / "per_frame.csv")
    evaluation = read(project.results / "evaluation.json")
    benchmark = read(project.results / "benchmark.json")
    anatomies = project.anatomies
    comparable = _is_papers_data(project, evaluation["surgeries"])
    return {
        "rows": rows,
        "same_anatomies": same_anatomies(rows),
        "every_decoder": EVERY_DECODER,
        "evaluation": evaluation,
        "fewest": FEWEST_SURGERIES,
        "annotators": sorted(set().union(*evaluation["annotators"].values())),
        "measured": lambda of: sum(of[anatomy]["mean"] is not None for anatomy in anatomies),
        "benchmark": benchmark,
        "same_machine": _is_same_machine(evaluation["machine"], benchmark["machine"]),
        "data": project.params.data,
        "settings": project.params_file.read_text(),
        "number": number,
        "commit": _commit(project.root),
        "comparable": comparable,
        "phantom": _is_phantom(project),
        "paper": _paper(project.params),
        "charts": {
            "curves": report_charts.curves(_curves(project.results / "curves/students")),
            "speed": report_charts.accuracy_and_speed(rows, table(1) if comparable else {}),
            "frames": report_charts.dice_of_frames(dice, anatomies),
        },
        "pictures": _pictures(
            project.results / "qualitative",
            [anatomy for anatomy in anatomies if ("mtkd", anatomy) in dice],
        ),
    }


def _is_same_machine(machine: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(machine[key] == other[key] for key in ("processor", "device", "threads"))


def _commit(root: Path) -> str:
    """The last commit of code, data or settings, and whether something is changed since.

    Empty outside of git.
    """
    paths = [".", *(f":(exclude){path}" for path in EXCLUDED)]
    try:
        commit = _git(root, "log", "-1", "--format=%h", "--abbrev=8", "--", *paths)
        changed = _git(root, "status", "--porcelain", "--", *paths)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit} with changes that are not committed" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _is_papers_data(project: Project, surgeries: int) -> bool:
    """Whether these are all test surgeries and anatomies of DSAD, by their names and numbers.

    Args:
        project: its settings say which are meant.
        surgeries: how many were measured.
    """
    data = project.params.data
    same = set(data.splits.test) == PAPER_TEST
    of_paper = set(next(iter(table(2).values()))) & set(data.anatomies)
    whole = surgeries == len(PAPER_TEST) and len(of_paper) == len(data.anatomies) == PAPER_ANATOMIES
    return same and whole and not _is_phantom(project)


def _is_phantom(project: Project) -> bool:
    """Whether the data are the embedded ones, by whichever path."""
    return (project.root / project.params.data.root).resolve() == project.phantom.resolve()


def _paper(params: Params) -> list[dict[str, Any]]:
    """The paper's rows for this run's networks: N teachers, student without and with teachers.

    The paper's students have a decoder for each anatomy; it has no row of others.
    """
    one = " (one decoder)" if params.student.shared else ""
    forms = (
        ("teachers", params.teacher.arch, "separate"),
        ("student, baseline", params.student.arch, f"shared{one}"),
        ("student, distilled", params.student.arch, f"shared+mtkd{one}"),
    )
    return [
        {
            "name": name,
            "arch": arch,
            "table1": table(1).get((arch, form)),
            "table2": table(2).get((arch, form)),
            "counted": len(params.data.anatomies) == PAPER_ANATOMIES,
        }
        for name, arch, form in forms
    ]


def _pictures(folder: Path, anatomies: list[str]) -> dict[str, dict[str, str]]:
    """By anatomy and rule, the picture as a data URL."""
    return {anatomy: _pictures_of(folder, anatomy) for anatomy in anatomies}


def _pictures_of(folder: Path, anatomy: str) -> dict[str, str]:
    return {rule: _embedded(folder / f"{anatomy}-{rule}.png") for rule in RULES}


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(_content(path)).decode()}"


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(path)
    return path.read_bytes()


def _curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The values of the students' epochs, by quantity and student."""
    curves = {quantity: _curve(folder, *file) for quantity, file in QUANTITIES.items()}
    if not all(curves.values()):
        raise MtkdError(f"{folder} lacks the students' curves: run `dvc repro -s -f train_student`")
    return curves


def _curve(students: Path, folder: str, name: str) -> dict[str, list[float]]:
    """The values of one quantity, by student."""
    values = {}
    for path in sorted(students.glob(f"*/plots/metrics/{folder}/{name}.tsv")):
        student = path.relative_to(students).parts[0]
        with path.open() as file:
            rows = csv.DictReader(file, delimiter="\t")
            values[student] = [float(row[name]) for row in rows]
    return values


def _dice_of_frames(path: Path) -> dict[tuple[str, str], list[float]]:
    """Dice in percent of every frame that has one, by network and anatomy that were measured."""
    dice: dict[tuple[str, str], list[float]] = {}
    damaged = DamagedFileError(path, "it is not a complete table of frames")
    try:
        text = _content(path).decode()
        for row in csv.DictReader(text.splitlines()):
            of_frames = dice.setdefault((row["network"], row["anatomy"]), [])
            of_frames += [100 * float(row["dice"])] if row["dice"] else []
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise damaged from error
    if not text.startswith("network,anatomy,") or not text.endswith("\n"):
        raise damaged
    return dice
