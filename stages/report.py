"""Stage ``report``: one self-contained HTML page that opens from disk."""

import base64
import csv
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.evaluation.bootstrap import FEWEST
from pipeline.files import write_atomically
from pipeline.settings import Params
from stages import summary
from stages.reporting import report_charts
from stages.reporting.paper_tables import table
from stages.shared.project import Project
from stages.shared.results import read

NOTED = {
    "validation Dice (%)": ("val_dice", "mean"),
    "cross-entropy, sum": ("cross_entropy", "sum"),
    "divergence, sum": ("kl_divergence", "sum"),
}
RULES = ("best", "median", "worst")
# The split of Kolbinger et al., on which the paper's figures hold.
PAPER_TEST, PAPER_ANATOMIES = {2, 7, 11, 13, 14, 18, 20, 32}, 11


def run(project: Project) -> None:
    """Write the page and print the table of results."""
    params = project.params
    rows = summary.results(project)
    dice = _dice_of_frames(project.results / "per_frame.csv")
    found = read(project.results / "evaluation.json")
    benchmark = read(project.results / "benchmark.json")
    comparable = _is_papers_data(project, found["surgeries"])
    template = (files("stages") / "templates" / "report.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"plain": lambda name: name.replace("_", " ")}
    page = environment.from_string(template).render(
        rows=rows,
        same_anatomies=summary.same_anatomies(rows),
        found=found,
        fewest=FEWEST,
        annotators=sorted(set().union(*found["annotators"].values())),
        measured=lambda of: sum(
            of[anatomy]["mean"] is not None for anatomy in params.data.anatomies
        ),
        benchmark=benchmark,
        same_machine=all(
            found["machine"][key] == benchmark["machine"][key]
            for key in ("processor", "device", "threads")
        ),
        data=params.data,
        settings=project.params_file.read_text(),
        number=summary.number,
        commit=_commit(project.root),
        comparable=comparable,
        phantom=_is_phantom(project),
        paper=_paper(params),
        charts={
            "curves": report_charts.curves(_curves(project.results / "curves/students")),
            "speed": report_charts.accuracy_and_speed(rows, table(1) if comparable else {}),
            "frames": report_charts.dice_of_frames(dice, params.data.anatomies),
        },
        pictures=_pictures(
            project.results / "qualitative",
            [anatomy for anatomy in params.data.anatomies if ("mtkd", anatomy) in dice],
        ),
    )
    write_atomically(project.report, page.encode())
    summary.run(project)


def _commit(root: Path) -> str:
    """The last commit of code, data or settings, and whether something is changed since; nothing outside of git.

    What a run writes and what only tells of it is left out: the same run gives the same page once
    it is committed.
    """
    paths = [
        ".",
        *(
            f":(exclude){path}"
            for path in ("dvc.lock", "metrics", "results", "docs", "*.md", "tests")
        ),
    ]
    asked = (["log", "-1", "--format=%h", "--abbrev=8"], ["status", "--porcelain"])
    try:
        found = [
            subprocess.run(
                ["git", *command, "--", *paths],
                cwd=root,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in asked
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    commit, changed = found
    return f"{commit} with changes that are not committed" if changed else commit


def _is_papers_data(project: Project, surgeries: int) -> bool:
    """Whether these are DSAD's test surgeries and anatomies, all of them, as far as names and numbers tell.

    Args:
        project: its settings say which are meant.
        surgeries: how many were measured.
    """
    data = project.params.data
    same = set(data.splits.test) == PAPER_TEST
    known = set(next(iter(table(2).values()))) & set(data.anatomies)
    whole = surgeries == len(PAPER_TEST) and len(known) == len(data.anatomies) == PAPER_ANATOMIES
    return same and whole and not _is_phantom(project)


def _is_phantom(project: Project) -> bool:
    """Whether the data are the embedded ones, by whichever path."""
    return (project.root / project.params.data.root).resolve() == project.phantom.resolve()


def _paper(params: Params) -> list[dict[str, Any]]:
    """The paper's rows for this run's networks: N teachers, student without and with teachers."""
    forms = (
        ("teachers", params.teacher.arch, "separate"),
        ("student, baseline", params.student.arch, "shared"),
        ("student, distilled", params.student.arch, "shared+mtkd"),
    )
    return [
        {
            "name": name,
            "arch": arch,
            "one": table(1).get((arch, form)),
            "two": table(2).get((arch, form)),
            "counted": len(params.data.anatomies) == PAPER_ANATOMIES,
        }
        for name, arch, form in forms
    ]


def _pictures(folder: Path, anatomies: list[str]) -> dict[str, dict[str, str]]:
    """By anatomy and rule, the picture as a data URL."""
    return {
        anatomy: {rule: _embedded(folder / f"{anatomy}-{rule}.png") for rule in RULES}
        for anatomy in anatomies
    }


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(_content(path)).decode()}"


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(path)
    return path.read_bytes()


def _curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """What the students' epochs noted, by quantity and student."""
    found = {quantity: _noted(folder, *file) for quantity, file in NOTED.items()}
    if not all(found.values()):
        raise MtkdError(f"{folder} lacks the students' curves: run `dvc repro -s -f train_student`")
    return found


def _noted(curves: Path, folder: str, name: str) -> dict[str, list[float]]:
    found = {}
    for path in sorted(curves.glob(f"*/plots/metrics/{folder}/{name}.tsv")):
        with path.open() as file:
            rows = csv.DictReader(file, delimiter="\t")
            found[path.relative_to(curves).parts[0]] = [float(row[name]) for row in rows]
    return found


def _dice_of_frames(path: Path) -> dict[tuple[str, str], list[float]]:
    """Dice in percent of every frame that has one, by network and anatomy that were measured."""
    found: dict[tuple[str, str], list[float]] = {}
    broken = DamagedFileError(path, "it is not a complete table of frames")
    try:
        text = _content(path).decode()
        for row in csv.DictReader(text.splitlines()):
            own = found.setdefault((row["network"], row["anatomy"]), [])
            own += [100 * float(row["dice"])] if row["dice"] else []
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise broken from error
    if not text.startswith("network,anatomy,") or not text.endswith("\n"):
        raise broken
    return found
