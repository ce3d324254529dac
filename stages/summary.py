"""``mtkd summary``: the table of results of the last run."""

from typing import Any

from rich.table import Table

from stages.shared.console import console, say
from stages.shared.project import Places
from stages.shared.results import read

ROWS = {"teachers": "teachers", "baseline": "student, baseline", "mtkd": "student, distilled"}


def results(places: Places) -> list[dict[str, Any]]:
    """One row per network: name, arch, Dice per anatomy and mean in percent, parameters, milliseconds, frames/s.

    ``measured``: over how many anatomies the mean is.
    """
    evaluation = read(places.metrics / "evaluate.json")
    counts, times = (
        read(places.metrics / "benchmark.json"),
        read(places.results / "benchmark.json"),
    )
    return [
        {
            "name": title,
            "dice": evaluation[key]["dice"],
            "iou": evaluation[key]["iou"],
            "measured": sum(
                value is not None
                for name, value in evaluation[key]["dice"].items()
                if name != "mean"
            ),
            **counts["teachers" if key == "teachers" else "student"],
            **times["teachers" if key == "teachers" else "student"],
        }
        for key, title in ROWS.items()
    ]


def same_anatomies(rows: list[dict[str, Any]]) -> bool:
    """Whether the means are over as many anatomies each: a teacher that is not here is not measured."""
    return len({row["measured"] for row in rows}) == 1


def number(value: float | None) -> str:
    """One decimal, or a dash where there is nothing to measure."""
    return "-" if value is None else f"{value:.1f}"


def run(places: Places) -> None:
    """Print it."""
    rows = results(places)
    benchmark = read(places.results / "benchmark.json")
    (height, width), machine = benchmark["image_size"], benchmark["machine"]
    where = f"{machine['processor']}, {machine['device']}, {machine['threads']} threads"
    table = Table(
        title=f"Dice (%) on the test surgeries; time for one {width}x{height} frame, {where}"
    )
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right")
    for anatomy in rows[0]["dice"]:
        style = "bold" if anatomy == "mean" else None
        table.add_row(
            anatomy.replace("_", " "), *(number(row["dice"][anatomy]) for row in rows), style=style
        )
    if not same_anatomies(rows):
        table.add_row("anatomies in the mean", *(str(row["measured"]) for row in rows))
    table.add_section()
    table.add_row("network", *(row["arch"] for row in rows))
    table.add_row("parameters (M)", *(f"{row['parameters'] / 1e6:.2f}" for row in rows))
    table.add_row("time (ms)", *(f"{row['milliseconds']:.0f}" for row in rows))
    table.add_row("frames/s", *(f"{row['fps']:.2f}" for row in rows))
    console.print(table)
    say(f"report: {places.report}")
