"""Stage ``report``: one self-contained HTML page that opens from disk."""

import base64
import csv
import json
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from pipeline.files import write_atomically
from pipeline.settings import Params
from stages import report_charts, summary
from stages.layout import METRICS, REPORT, RESULTS
from stages.paper_tables import table
from stages.params import PARAMS, load_params

CURVES = RESULTS / "curves" / "students"
RULES = ("best", "median", "worst")
# The split of Kolbinger et al., on which the paper's figures hold.
PAPER_TEST, PAPER_ANATOMIES = {2, 7, 11, 13, 14, 18, 20, 32}, 11


def run() -> None:
    """Write the page and print the table of results."""
    params, rows = load_params(), summary.results()
    template = (files("stages") / "templates" / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"plain": lambda name: name.replace("_", " ")}
    page = environment.from_string(template).render(
        rows=rows,
        found=_read(RESULTS / "evaluation.json"),
        gain=summary.read(METRICS / "evaluate.json")["gain"],
        benchmark=summary.read(RESULTS / "benchmark.json"),
        data=params.data,
        settings=PARAMS.read_text(),
        number=summary.number,
        commit=_commit(),
        comparable=_is_papers_data(params),
        paper=_paper(params),
        charts={
            "curves": report_charts.curves(_curves()),
            "speed": report_charts.accuracy_and_speed(rows, table(1) if _is_papers_data(params) else {}),
            "frames": report_charts.dice_of_frames(_dice_of_frames(), params.data.anatomies),
        },
        pictures=_pictures(params.data.anatomies),
    )
    write_atomically(REPORT, page.encode())
    summary.run()


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _commit() -> str:
    """The last commit of code, data or settings, and whether something is changed since; nothing outside of git.

    What a run writes and what only tells of it is left out: the same run gives the same page once it is committed.
    """
    paths = [".", *(f":(exclude){path}" for path in ("dvc.lock", "metrics", "results", "docs", "*.md", "tests"))]
    asked = (["log", "-1", "--format=%h", "--abbrev=8"], ["status", "--porcelain"])
    try:
        found = [
            subprocess.run(["git", *command, "--", *paths], capture_output=True, text=True, check=True).stdout.strip()
            for command in asked
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    commit, changed = found
    return f"{commit} with changes that are not committed" if changed else commit


def _is_papers_data(params: Params) -> bool:
    """Whether these are DSAD's test surgeries and anatomies, as far as names and numbers tell."""
    data = params.data
    same = {int(s) if str(s).isdigit() else s for s in data.splits.test} == PAPER_TEST
    known = set(next(iter(table(2).values()))) & set(data.anatomies)
    return same and len(known) == PAPER_ANATOMIES and data.root != "data/phantom"


def _paper(params: Params) -> list[dict[str, Any]]:
    """The paper's rows for this run's networks: N teachers, student without and with teachers."""
    forms = (
        ("teachers", params.teacher.arch, "separate"),
        ("student, baseline", params.student.arch, "shared"),
        ("student, distilled", params.student.arch, "shared+mtkd"),
    )
    return [
        {"name": name, "arch": arch, "one": table(1).get((arch, form)), "two": table(2).get((arch, form))}
        for name, arch, form in forms
    ]


def _pictures(anatomies: list[str]) -> dict[str, dict[str, str]]:
    """By anatomy and rule, the picture as a data URL."""
    folder = RESULTS / "qualitative"
    return {
        anatomy: {rule: _embedded(folder / f"{anatomy}-{rule}.png") for rule in RULES}
        for anatomy in anatomies
        if (folder / f"{anatomy}-{RULES[0]}.png").is_file()
    }


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _curves() -> dict[str, list[float]]:
    """Validation Dice over epochs, per student."""
    found = {}
    for path in sorted(CURVES.glob("*/plots/metrics/val_dice/mean.tsv")):
        with path.open() as file:
            rows = csv.DictReader(file, delimiter="\t")
            found[path.relative_to(CURVES).parts[0]] = [float(row["mean"]) for row in rows]
    return found


def _dice_of_frames() -> dict[tuple[str, str], list[float]]:
    """Dice in percent of every frame, by network and anatomy."""
    found: dict[tuple[str, str], list[float]] = {}
    with (RESULTS / "per_frame.csv").open() as file:
        for row in csv.DictReader(file):
            if row["dice"]:
                found.setdefault((row["network"], row["anatomy"]), []).append(100 * float(row["dice"]))
    return found
