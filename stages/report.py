"""Stage ``report``: one self-contained HTML page that opens from disk."""

import base64
import csv
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from pipeline.files import write_atomically
from stages import summary
from stages.layout import METRICS, REPORT, RESULTS
from stages.params import PARAMS, load_params

CURVES = RESULTS / "curves" / "students"
WIDTH, HEIGHT = 640, 240


def run() -> None:
    """Write the page and print the table of results."""
    params = load_params()
    template = (files("stages") / "templates" / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        rows=summary.results(),
        gain=summary.read(METRICS / "evaluate.json")["gain"],
        benchmark=summary.read(RESULTS / "benchmark.json"),
        data=params.data,
        settings=PARAMS.read_text(),
        number=summary.number,
        curves=_curves(),
        size=(WIDTH, HEIGHT),
        pictures={p.stem: _embedded(p) for p in sorted((RESULTS / "qualitative").glob("*.png"))},
    )
    write_atomically(REPORT, page.encode())
    summary.run()


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _curves() -> list[dict[str, Any]]:
    """Validation Dice over epochs as SVG points, per student."""
    series = []
    for path in sorted(CURVES.glob("*/plots/metrics/val_dice/mean.tsv")):
        with path.open() as file:
            values = [float(row["mean"]) for row in csv.DictReader(file, delimiter="\t")]
        step = WIDTH / max(1, len(values) - 1)
        points = " ".join(f"{i * step:.1f},{HEIGHT * (1 - v / 100):.1f}" for i, v in enumerate(values))
        series.append({"name": path.relative_to(CURVES).parts[0], "points": points, "epochs": len(values)})
    return series
