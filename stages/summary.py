"""``mtkd summary``: the table of results of the last run."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.errors import MtkdError
from stages.console import console, say
from stages.layout import METRICS, REPORT, RESULTS

ROWS = {"teachers": "teachers", "baseline": "student, baseline", "mtkd": "student, distilled"}


def read(path: Path) -> Any:
    """A metrics file of the last run.

    Raises:
        MtkdError: there is none.
    """
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro`")
    return json.loads(path.read_text())


def results() -> list[dict[str, Any]]:
    """One row per network: name, arch, Dice per anatomy and mean in percent, parameters, milliseconds, frames/s."""
    evaluation = read(METRICS / "evaluate.json")
    counts, times = read(METRICS / "benchmark.json"), read(RESULTS / "benchmark.json")
    return [
        {
            "name": title,
            "dice": evaluation[key]["dice"],
            "iou": evaluation[key]["iou"],
            **counts["teachers" if key == "teachers" else "student"],
            **times["teachers" if key == "teachers" else "student"],
        }
        for key, title in ROWS.items()
    ]


def number(value: float | None) -> str:
    """One decimal, or a dash where there is nothing to measure."""
    return "-" if value is None else f"{value:.1f}"


def run() -> None:
    """Print it."""
    rows = results()
    height, width = read(RESULTS / "benchmark.json")["image_size"]
    table = Table(title=f"Dice (%) on the test surgeries; time for one {width}x{height} frame on this run's machine")
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right")
    for anatomy in rows[0]["dice"]:
        style = "bold" if anatomy == "mean" else None
        table.add_row(anatomy.replace("_", " "), *(number(row["dice"][anatomy]) for row in rows), style=style)
    table.add_section()
    table.add_row("network", *(row["arch"] for row in rows))
    table.add_row("parameters (M)", *(f"{row['parameters'] / 1e6:.2f}" for row in rows))
    table.add_row("time (ms)", *(f"{row['milliseconds']:.0f}" for row in rows))
    table.add_row("frames/s", *(f"{row['fps']:.1f}" for row in rows))
    console.print(table)
    say(f"report: {REPORT}")
