"""``mtkd benchmark networks``: batched against sequential decoders, in the same run."""

from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.timing.decoders import DecoderCase, largest_difference, measure
from pipeline.timing.host import machine_record
from stages.shared.console import console, progress, say

OUTPUT = Path("results/benchmark_networks.json")
FORMS = ("looped", "joined")
# Task: frames per call, (height, width).
SHAPES = {"train": (8, (128, 160)), "infer": (1, (720, 1280))}


def run(
    architectures: list[str], decoders: int, repeats: int, output: Path, machine: Machine
) -> None:
    """Measure and print; write everything as JSON."""
    rows: list[dict[str, Any]] = []
    with progress("cases measured") as bar:
        wanted = list(product(architectures, SHAPES, ("32-true", "bf16-mixed")))
        for number, (architecture, task, precision) in enumerate(wanted, start=1):
            batch, size = SHAPES[task]
            cases = [
                DecoderCase(architecture, decoders, form, task, precision, batch, size, machine)  # type: ignore[arg-type]
                for form in FORMS
            ]
            forms = dict(zip(FORMS, measure(cases, 1, repeats), strict=True))
            rows.append(
                {
                    "architecture": architecture,
                    "task": task,
                    "precision": precision,
                    **_compared(forms),
                }
            )
            say(f"{architecture} {task} {precision}: {rows[-1]['speedup']} times as fast")
            bar(number, len(wanted))
    differences = {a: largest_difference(a, decoders, SHAPES["infer"][1]) for a in architectures}
    shapes = {
        task: {"batch": batch, "image_size": list(size)} for task, (batch, size) in SHAPES.items()
    }
    write_json(
        output,
        {
            "machine": machine_record(machine),
            "decoders": decoders,
            "repeats": repeats,
            **shapes,
            "logit_difference": differences,
            "cases": rows,
        },
    )
    _print(rows, decoders)
    for architecture, difference in differences.items():
        say(f"{architecture}: largest difference of the logits {difference:.1e}")
    say(f"-> {output}")


def _compared(forms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sequential = forms["looped"]
    batched = forms["joined"]
    return {
        **forms,
        "speedup": round(sequential["milliseconds"] / batched["milliseconds"], 2),
        "memory_ratio": round(batched["peak_mib"] / max(sequential["peak_mib"], 0.1), 2),
    }


def _print(rows: list[dict[str, Any]], decoders: int) -> None:
    (train, (height, width)) = SHAPES["train"]
    (_, (h, w)) = SHAPES["infer"]
    table = Table(
        title=f"{decoders} decoders; train: {train} frames of {width}x{height}; "
        f"infer: one of {w}x{h}"
    )
    for column in ("network", "task", "precision"):
        table.add_column(column)
    for column in ("looped ms", "joined ms", "times as fast", "looped MiB", "joined MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        sequential = row["looped"]
        batched = row["joined"]
        table.add_row(
            row["architecture"],
            row["task"],
            row["precision"],
            f"{sequential['milliseconds']:.0f}",
            f"{batched['milliseconds']:.0f}",
            f"{row['speedup']:.2f}",
            f"{sequential['peak_mib']:.0f}",
            f"{batched['peak_mib']:.0f}",
        )
    console.print(table)
