"""The table of results of the last run: its networks' Dice, and what they cost."""

from typing import Any

from rich.table import Table

from stages.shared.console import console, say
from stages.shared.project import Places
from stages.shared.results import read

# Means that stand below the Dice of own frames, as metrics/evaluate.json calls them.
EVERY_DECODER = {
    "known_dice": "Dice, all known pixels",
    "every_dice": "Dice, every frame",
    "absent_area": "area claimed where absent",
    "overlap": "pixels of several organs",
}
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
    for cells in [*_measured_rows(rows), *_every_decoder_rows(rows)]:
        table.add_row(*cells, style="bold" if cells[0] == "mean" else None)
    table.add_section()
    table.add_row("network", *(row["arch"] for row in rows))
    table.add_row("parameters (M)", *(f"{row['parameters'] / 1e6:.2f}" for row in rows))
    table.add_row("time (ms)", *(f"{row['milliseconds']:.0f}" for row in rows))
    table.add_row("frames/s", *(f"{row['fps']:.2f}" for row in rows))
    console.print(table)
    say(f"report: {places.report}")


def _measured_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Dice of own frames: the mean, then each anatomy."""
    cells = []
    for anatomy in rows[0]["dice"]:
        values = [number(row["dice"][anatomy]) for row in rows]
        cells.append([anatomy.replace("_", " "), *values])
    if not same_anatomies(rows):
        cells.append(["anatomies in the mean", *(str(row["measured"]) for row in rows)])
    return cells


def _every_decoder_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """What all decoders say on all frames, as far as it was measured."""
    cells = []
    for measure, title in EVERY_DECODER.items():
        means = [row["every_decoder"][measure] for row in rows]
        if any(mean is not None for mean in means):
            cells.append([title, *map(number, means)])
    return cells


def results(places: Places) -> list[dict[str, Any]]:
    """One row per network: its name, what was measured of it and what it costs.

    ``dice`` and ``iou`` per anatomy and as ``mean``, in percent; ``every_decoder``, the means of
    :data:`EVERY_DECODER`; ``measured``, over how many
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
                "every_decoder": {name: evaluation[key][name]["mean"] for name in EVERY_DECODER},
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
