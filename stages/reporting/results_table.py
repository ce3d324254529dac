"""The table of results of the last run: its networks' Dice, and what they cost."""

from typing import Any

from rich.table import Table

from stages.shared.console import console, say
from stages.shared.project import Places
from stages.shared.results import read

ROWS = {"teachers": "teachers", "baseline": "student, baseline", "mtkd": "student, distilled"}


def print_results(places: Places) -> None:
    """Print the table, and where the report of the run is.

    Raises:
        MtkdError: a file that an earlier stage writes is missing or damaged.
    """
    rows = results(places)
    benchmark = read(places.results / "benchmark.json")
    height, width = benchmark["image_size"]
    machine = benchmark["machine"]
    host = f"{machine['processor']}, {machine['device']}, {machine['threads']} threads"
    table = Table(
        title=f"Dice (%) on the test surgeries; time for one {width}x{height} frame, {host}"
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


def results(places: Places) -> list[dict[str, Any]]:
    """One row per network: its name, what was measured of it and what it costs.

    ``dice`` and ``iou`` per anatomy and as ``mean``, in percent; ``measured``, over how many
    anatomies the mean is; ``arch``, ``parameters``, ``milliseconds``, ``fps`` and what else the
    benchmark says.

    Raises:
        MtkdError: a file that an earlier stage writes is missing or damaged.
    """
    evaluation = read(places.metrics / "evaluate.json")
    counts = read(places.metrics / "benchmark.json")
    times = read(places.results / "benchmark.json")
    rows = []
    for key, title in ROWS.items():
        dice = evaluation[key]["dice"]
        network = "teachers" if key == "teachers" else "student"
        rows.append(
            {
                "name": title,
                "dice": dice,
                "iou": evaluation[key]["iou"],
                "measured": _measured(dice),
                **counts[network],
                **times[network],
            }
        )
    return rows


def _measured(dice: dict[str, float | None]) -> int:
    """Over how many anatomies the mean is."""
    return sum(value is not None for name, value in dice.items() if name != "mean")


def same_anatomies(rows: list[dict[str, Any]]) -> bool:
    """Whether the means are over the same number of anatomies.

    A teacher without a checkpoint here is not measured.
    """
    return len({row["measured"] for row in rows}) == 1


def number(value: float | None) -> str:
    """One decimal, or a dash where there is nothing to measure."""
    return "-" if value is None else f"{value:.1f}"
