"""``mtkd benchmark --all``: every architecture in both forms and every runtime, all of one architecture in one run."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline.checkpoint import load_card
from pipeline.deployment.export import Run, as_batch, trace, write_int8
from pipeline.errors import MtkdError
from pipeline.evaluation.exported import runtime_dice
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.prepared import load_frame
from pipeline.timing.cost import multiply_adds, parameters
from pipeline.timing.host import LIBRARIES, machine_record
from pipeline.timing.interleaved import REMEDY, Timing, try_interleaved
from pipeline.timing.latency import Candidate, Variant, example, export_graph, variants
from pipeline.training_errors import mendable
from stages.reporting.figures import FIGURES, figures
from stages.reporting.paper_tables import table as paper_table
from stages.shared.console import console, progress, say
from stages.shared.project import Places

OUTPUT = Path("results/benchmark_all.json")
PLACES = Places(Path())
CALIBRATED = 32


def run(
    architectures: Sequence[str],
    runtimes: Sequence[str],
    forms: Sequence[str],
    decoders: int,
    size: tuple[int, int],
    repeats: int,
    output: Path,
    machine: Machine,
) -> None:
    """Measure, print, and write as JSON; of what does not fit into memory, ``problem`` says so, and figures are None.

    Args:
        architectures: which.
        runtimes: which; those that are not installed are left out and named.
        forms: of the network: joined, looped, frozen, graph, compiled; those that this device
            knows.
        decoders: how many anatomies.
        size: (H, W) of the frame.
        repeats: calls per measurement, after one that doesn't count.
        output: JSON file.
        machine: where PyTorch computes.

    Raises:
        MtkdError: some could not be measured; what could is written before.
    """
    host = machine_record(machine, LIBRARIES)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with progress("architectures measured") as bar, tempfile.TemporaryDirectory() as folder:
        for number, arch in enumerate(architectures, start=1):
            for form in ("separate", "shared"):
                try:
                    with mendable(REMEDY):
                        found = _measured(
                            arch,
                            form,
                            runtimes,
                            forms,
                            decoders,
                            size,
                            repeats,
                            Path(folder),
                            machine,
                        )
                except MtkdError as error:
                    failed.append(f"{arch} {form}: {error}")
                    say(failed[-1])
                    continue
                rows += found
                # After each, since all of them take an hour.
                write_json(
                    output,
                    {"image_size": list(size), "decoders": decoders, "machine": host, "rows": rows},
                )
                for row in found:
                    say(f"{row['name']} {form} {_way(row)}: {_speed(row)}")
            bar(number, len(architectures))
    _print(rows, size)
    if rows:
        say(f"-> {output}")
    if failed:
        raise MtkdError("\n  ".join([f"{len(failed)} could not be measured:", *failed]))


def _way(row: dict[str, Any]) -> str:
    return f"{row['runtime']} {row['precision']} {row['decoding']}"


def _speed(row: dict[str, Any]) -> str:
    return row["problem"] or f"{_short(row['milliseconds'])} ms, {row['fps']:.2f} frames/s"


def _ways(
    runtimes: Sequence[str], forms: Sequence[str], form: str, machine: Machine
) -> list[Variant]:
    """What to measure; a network with one decoder has nothing to join."""
    return [
        way
        for way in variants(runtimes, forms, machine.torch_device)
        if form == "shared" or way[2] != "looped"
    ]


def _measured(
    arch: str,
    form: str,
    runtimes: Sequence[str],
    forms: Sequence[str],
    decoders: int,
    size: tuple[int, int],
    repeats: int,
    folder: Path,
    machine: Machine,
) -> list[dict[str, Any]]:
    """All ways of one architecture and form, in turns: from frame to masks, and then the network alone."""
    heads, networks = (1, decoders) if form == "separate" else (decoders, 1)
    trained = _trained(arch, decoders) if form == "shared" else None
    candidates = [
        Candidate(arch, heads, size, machine, networks, *way, checkpoint=trained)
        for way in _ways(runtimes, forms, form, machine)
    ]
    wholes = _in_turns(candidates, folder, repeats)
    networks_alone = _in_turns(
        [replace(one, part="network") for one in candidates], folder, repeats
    )
    count = networks * parameters(create_model(arch, heads))
    published = paper_table(1).get((arch, form), {}) if decoders == 11 else {}
    dice = (
        _dice(trained, runtimes, forms, machine)
        if trained and (PLACES.prepared_frames / "test").is_dir()
        else {}
    )
    reference = next(
        (
            t.output
            for w, t in zip(candidates, networks_alone, strict=True)
            if t and w.runtime == "PyTorch"
        ),
        None,
    )
    return [
        {
            "name": arch,
            "form": form,
            "runtime": way.runtime,
            "precision": way.precision,
            "decoding": way.form,
            "parameters": count,
            "multiply_adds": networks * multiply_adds(arch, heads, size),
            **_figures(whole),
            "network_milliseconds": _figures(network)["milliseconds"],
            "problem": _problem(whole, network),
            "logit_difference": _difference(network, reference),
            "weights": "trained" if trained else "random",
            "dice": dice.get(f"{way.runtime} {way.precision} {way.form}"),
            "paper_ms_rtx3090": published.get("time_ms_rtx3090"),
        }
        for way, whole, network in zip(candidates, wholes, networks_alone, strict=True)
    ]


def _figures(timing: Timing | None) -> Mapping[str, float | None]:
    return figures(timing) if timing else dict.fromkeys(FIGURES)


def _in_turns(candidates: Sequence[Candidate], folder: Path, repeats: int) -> list[Timing | None]:
    """The ways of one runtime take turns; another runtime's come after, or all of them would not fit into memory."""
    groups = [list(group) for _, group in groupby(candidates, key=lambda way: way.runtime)]
    return [
        t
        for group in groups
        for t in try_interleaved([_with_graph(way, folder) for way in group], 1, repeats)
    ]


def _trained(arch: str, decoders: int) -> Path | None:
    """This run's distilled student, if it is such a network."""
    path = PLACES.student_checkpoint("mtkd")
    if not path.is_file():
        return None
    card = load_card(path, "train_student")
    return path if (card.architecture, len(card.anatomies)) == (arch, decoders) else None


def _with_graph(way: Candidate, folder: Path) -> Candidate:
    if way.runtime == "PyTorch":
        return way
    numeric = "int8" if way.precision == "int8" else "float"  # bfloat16 is the runtime's own choice
    path = folder / f"{way.architecture}-{way.decoders}-{way.form}-{way.part}-{numeric}"
    written = path.with_suffix(".xml" if way.precision == "int8" else ".onnx")
    return replace(way, graph=written if written.is_file() else export_graph(way, path))


def _problem(whole: Timing | None, network: Timing | None) -> str | None:
    if whole is None or network is None:
        return "out of memory"
    return (
        None
        if network.output is None or np.isfinite(network.output).all()
        else "not all logits are finite"
    )


def _difference(timing: Timing | None, reference: Any) -> float | None:
    """Largest difference of a logit from PyTorch's in float32."""
    if timing is None or timing.output is None or reference is None:
        return None
    if timing.output.ndim < reference.ndim:  # margins
        reference = reference[:, :, 1] - reference[:, :, 0]
    largest = float(f"{np.abs(timing.output - reference).max():.2e}")
    return largest if isfinite(largest) else None


def _dice(
    student: Path, runtimes: Sequence[str], forms: Sequence[str], machine: Machine
) -> dict[str, float | None]:
    """Dice of this run's student on the test surgeries, at the size of its training, each way."""
    card = load_card(student, "train_student")
    size, anatomies = card.image_size, card.anatomies
    network = Candidate(card.architecture, len(anatomies), size, machine, checkpoint=student)
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime, precision, form in _ways(runtimes, forms, "shared", machine):
            way = replace(network, runtime=runtime, precision=precision, form=form)
            if runtime != "PyTorch":
                graph = trace(way.module(), example(size, "whole"), Path(folder) / f"{form}.onnx")
                if precision == "int8":
                    graph = write_int8(graph, graph.with_suffix(".xml"), _calibration(anatomies))
                way = replace(way, graph=graph)
            found[f"{runtime} {precision} {form}"] = runtime_dice(
                _one_by_one(way.function()), PLACES.frames_of("test", anatomies), anatomies, size
            )
    return found


def _calibration(anatomies: Sequence[str]) -> list[NDArray[np.uint8]]:
    train = PLACES.frames_of("train", anatomies)
    return [
        as_batch(load_frame(frame.image)) for frame in train[:: max(1, len(train) // CALIBRATED)]
    ]


def _one_by_one(function: Callable[[NDArray[Any]], NDArray[Any]]) -> Run:
    return lambda frame: function(as_batch(frame))[0].astype(bool)


def _print(rows: list[dict[str, Any]], size: tuple[int, int]) -> None:
    height, width = size
    table = Table(title=f"One {width}x{height} frame to all its masks, batch 1")
    for column in ("network", "form", "runtime", "precision", "decoders"):
        table.add_column(column)
    for column in (
        "ms",
        "p95",
        "first",
        "network alone",
        "frames/s",
        "MiB",
        "logits differ by",
        "Dice",
        "paper, RTX 3090",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("name", "form", "runtime", "precision", "decoding")),
            row["problem"] or _short(row["milliseconds"]),
            *(_short(row[f"{name}_milliseconds"]) for name in ("p95", "first", "network")),
            _cell(row["fps"], ".2f"),
            _cell(row["peak_mib"], ".0f"),
            _cell(row["logit_difference"], ".1e"),
            _cell(row["dice"], ".2f"),
            f"{row['paper_ms_rtx3090']:.0f} ms" if row["paper_ms_rtx3090"] else "-",
        )
    console.print(table)
    say("The last column is the paper's, on an RTX 3090; all others are this machine's.")


def _short(milliseconds: float | None) -> str:
    """With three digits, or more where they stand before the point."""
    if milliseconds is None:
        return "-"
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
