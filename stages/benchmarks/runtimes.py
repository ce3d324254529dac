"""``mtkd benchmark --all``: every architecture in all forms and every runtime.

All of one architecture is measured in one run.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline.checkpoint import load_card
from pipeline.deployment.export import Run, write_int8
from pipeline.deployment.onnx_graph import export_onnx
from pipeline.deployment.segmenter import Gives, as_batch
from pipeline.errors import MtkdError
from pipeline.evaluation.runtime_dice import RuntimeDice, runtime_dice
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.prepared import Frame, load_frame
from pipeline.timing.cost import multiply_adds, parameters
from pipeline.timing.forms import Form, forms
from pipeline.timing.host import LIBRARIES, machine_record
from pipeline.timing.interleaved import Timing, attempted, try_interleaved
from pipeline.timing.latency import (
    FORMS,
    LAUNCH_MODES,
    Candidate,
    Variant,
    example,
    export_graph,
    variants,
)
from pipeline.training_errors import translated_errors
from stages.reporting.figures import FIGURES, figures
from stages.reporting.paper_tables import table as paper_table
from stages.shared.console import console, progress, say
from stages.shared.project import Places
from stages.shared.remedies import explained

OUTPUT = Path("results/benchmark_all.json")
CALIBRATED = 32


@dataclass(frozen=True)
class Row:
    """What one architecture takes in one form and variant: an object of the JSON file.

    Attributes:
        name, form: of the architecture, and of :class:`pipeline.timing.forms.Form`.
        runtime, precision, decoding: the variant.
        parameters, multiply_adds: of all networks that a frame needs.
        milliseconds, p95_milliseconds, first_milliseconds, fps, peak_mib: from a frame to its
            masks; None if that has a problem.
        network_milliseconds: of the network alone.
        problem: why figures are missing or worth nothing, or None.
        logit_difference: largest difference of a logit from PyTorch's in float32; None if that was
            not measured.
        weights: ``trained`` or ``random``.
        dice: percent on the test surgeries, of trained weights, on the frames of each anatomy.
        every_dice: likewise, of all decoders on every frame that has a complete label map.
        paper_ms_rtx3090: the paper's time.
    """

    name: str
    form: str
    runtime: str
    precision: str
    decoding: str
    parameters: int
    multiply_adds: int
    milliseconds: float | None
    p95_milliseconds: float | None
    first_milliseconds: float | None
    fps: float | None
    peak_mib: float | None
    network_milliseconds: float | None
    problem: str | None
    logit_difference: float | None
    weights: str
    dice: float | None
    every_dice: float | None
    paper_ms_rtx3090: float | None


@dataclass(frozen=True)
class Settings:
    """What is measured of every architecture.

    Attributes:
        runtimes: which; those that are not installed are left out and named.
        forms: of the network: joined, looped, frozen, graph, compiled; those that this device
            knows.
        decoders: how many anatomies.
        size: (H, W) of the frame.
        repeats: calls per measurement, after one that doesn't count.
        machine: where PyTorch computes.
        network_size: (H, W) at which networks see the frame; None for its own.
        gives: what comes out: masks or labels.
    """

    runtimes: Sequence[str]
    forms: Sequence[str]
    decoders: int
    size: tuple[int, int]
    repeats: int
    machine: Machine
    network_size: tuple[int, int] | None = None
    gives: Gives = "masks"

    @property
    def seen_size(self) -> tuple[int, int]:
        """(H, W) at which networks see the frame."""
        return self.network_size or self.size

    def require_variants(self) -> None:
        """Refuse what would measure nothing.

        Raises:
            MtkdError: no runtime that is installed knows any of the forms on this device.
        """
        device = self.machine.torch_device
        if variants(self.runtimes, self.forms, device):
            return
        known = dict.fromkeys(form for _, _, form in variants(self.runtimes, FORMS, device))
        runtimes = ", ".join(self.runtimes)
        if not known:
            raise MtkdError(f"--runtime {runtimes}: not installed here")
        raise MtkdError(
            f"--form {', '.join(self.forms)}: not known on {device.type} to {runtimes}; "
            f"choose {', '.join(known)}"
        )

    def variants(self, form: Form) -> list[Variant]:
        """What to measure; a network with one decoder has no sequential ones."""
        several = form.anatomies > 1 and not form.shared
        return [
            variant
            for variant in variants(self.runtimes, self.forms, self.machine.torch_device)
            if several or variant[2] != "looped"
        ]


def run(places: Places, architectures: Sequence[str], settings: Settings, output: Path) -> None:
    """Measure, print, and write as JSON, a :class:`Row` for each variant.

    Args:
        places: of the project, for its student and its test frames.
        architectures: which.
        settings: what is measured of each.
        output: JSON file.

    Raises:
        MtkdError: nothing can be measured here so; or some could not be, and what could is written
            before.
    """
    settings.require_variants()
    host = machine_record(settings.machine, LIBRARIES)
    rows: list[Row] = []
    failed: list[str] = []
    with progress("architectures measured") as bar, tempfile.TemporaryDirectory() as folder:
        for number, arch in enumerate(architectures, start=1):
            for form in forms(settings.decoders):
                try:
                    with translated_errors():
                        measured = _measured(arch, form, settings, places, Path(folder))
                except MtkdError as error:
                    failed.append(
                        f"{arch} {form.name}: {explained(error, places.root, 'benchmark')}"
                    )
                    say(failed[-1])
                    continue
                rows += measured
                # After each, since all of them take an hour.
                _write(output, settings, host, rows)
                for row in measured:
                    say(f"{row.name} {form.name} {_variant(row)}: {_speed(row)}")
            bar(number, len(architectures))
    _print(rows, settings)
    if rows:
        say(f"-> {output}")
    failed += [
        f"{row.name} {row.form} {_variant(row)}: {row.problem}" for row in rows if row.problem
    ]
    if failed:
        raise MtkdError("\n  ".join([f"{len(failed)} could not be measured:", *failed]))


def _write(output: Path, settings: Settings, host: dict[str, Any], rows: Sequence[Row]) -> None:
    write_json(
        output,
        {
            "image_size": list(settings.size),
            "network_size": list(settings.seen_size),
            "gives": settings.gives,
            "decoders": settings.decoders,
            "machine": host,
            "rows": [asdict(row) for row in rows],
        },
    )


def _variant(row: Row) -> str:
    return f"{row.runtime} {row.precision} {row.decoding}"


def _speed(row: Row) -> str:
    return row.problem or f"{_short(row.milliseconds)} ms, {row.fps:.2f} frames/s"


def _measured(arch: str, form: Form, settings: Settings, places: Places, folder: Path) -> list[Row]:
    """All variants of one architecture and form, in interleaved measurement.

    From frame to masks, and then the network alone.
    """
    n = form.anatomies
    networks = form.networks
    trained = _trained(places, arch, form)
    candidates = [
        Candidate(
            arch,
            n,
            settings.size,
            settings.machine,
            networks,
            *variant,
            checkpoint=trained,
            shared=form.shared,
            network_size=settings.network_size,
            gives=settings.gives,
        )
        for variant in settings.variants(form)
    ]
    alone = [replace(candidate, part="network") for candidate in candidates]
    wholes = _interleaved(candidates, folder, settings.repeats)
    networks_alone = _interleaved(alone, folder, settings.repeats)
    count = networks * parameters(create_model(arch, n, shared=form.shared))
    operations = networks * multiply_adds(arch, n, settings.seen_size, shared=form.shared)
    measured_dice = _dice(trained, form, settings, places) if trained else {}
    dices = [measured_dice.get((c.runtime, c.precision, c.form)) for c in candidates]
    reference = _reference(candidates, networks_alone)
    paper_time = _paper_time(arch, form.name, settings)
    return [
        Row(
            name=arch,
            form=form.name,
            runtime=candidate.runtime,
            precision=candidate.precision,
            decoding=candidate.form,
            parameters=count,
            multiply_adds=operations,
            **_figures(whole),
            network_milliseconds=_figures(network)["milliseconds"],
            problem=_problem(whole, network, dice),
            logit_difference=_difference(network, reference),
            weights="trained" if trained else "random",
            dice=dice.own if isinstance(dice, RuntimeDice) else None,
            every_dice=dice.every if isinstance(dice, RuntimeDice) else None,
            paper_ms_rtx3090=paper_time,
        )
        for candidate, whole, network, dice in zip(
            candidates, wholes, networks_alone, dices, strict=True
        )
    ]


def _reference(
    candidates: Sequence[Candidate], timings: Sequence[Timing | MtkdError]
) -> NDArray[np.float32] | None:
    """The logits of PyTorch in float32, launched as they are; None if none was measured."""
    for candidate, timing in zip(candidates, timings, strict=True):
        variant = (candidate.runtime, candidate.precision)
        is_exact = variant == ("PyTorch", "float32") and candidate.form not in LAUNCH_MODES
        if is_exact and isinstance(timing, Timing):
            return timing.output
    return None


def _paper_time(arch: str, form: str, settings: Settings) -> float | None:
    """The paper's milliseconds, which are of eleven anatomies and frames at their own size."""
    is_papers = settings.decoders == 11 and settings.seen_size == settings.size
    published = paper_table(1).get((arch, form), {}) if is_papers else {}
    return published.get("time_ms_rtx3090")


def _figures(timing: Timing | MtkdError) -> Mapping[str, float | None]:
    return figures(timing) if isinstance(timing, Timing) else dict.fromkeys(FIGURES)


def _interleaved(
    candidates: Sequence[Candidate], folder: Path, repeats: int
) -> list[Timing | MtkdError]:
    """The variants of one runtime are interleaved; one's problem is not the others'.

    Another runtime's come after, or all of them would not fit into memory. What can't be exported
    is not measured.
    """
    groups = groupby(candidates, key=lambda candidate: candidate.runtime)
    timings: list[Timing | MtkdError] = []
    for _, group in groups:
        ready = [attempted(partial(_with_graph, c, folder)) for c in group]
        measurable = [candidate for candidate in ready if isinstance(candidate, Candidate)]
        measured = iter(try_interleaved(measurable, 1, repeats))
        timings += [c if isinstance(c, MtkdError) else next(measured) for c in ready]
    return timings


def _trained(places: Places, arch: str, form: Form) -> Path | None:
    """This run's distilled student, if it is such a network."""
    path = places.student_checkpoint("mtkd")
    if form.networks > 1 or not path.is_file():
        return None
    card = load_card(path)
    found = (card.architecture, len(card.anatomies), card.shared)
    return path if found == (arch, form.anatomies, form.shared) else None


def _with_graph(candidate: Candidate, folder: Path) -> Candidate:
    """The same with the file that its runtime opens; PyTorch needs none."""
    if candidate.runtime == "PyTorch":
        return candidate
    decoders = "one" if candidate.shared else candidate.decoders
    network = f"{candidate.architecture}-{decoders}"
    path = folder / f"{network}-{candidate.form}-{candidate.part}"
    # bfloat16 is the runtime's own choice.
    file = path.with_suffix(".xml" if candidate.precision == "int8" else ".onnx")
    return replace(candidate, graph=file if file.is_file() else export_graph(candidate, path))


def _problem(*results: Timing | MtkdError | RuntimeDice | None) -> str | None:
    for result in results:
        if isinstance(result, MtkdError):
            return str(result)
        if isinstance(result, Timing) and not _is_finite(result.output):
            return "not all logits are finite"
    return None


def _is_finite(output: NDArray[np.float32] | None) -> bool:
    return output is None or bool(np.isfinite(output).all())


def _difference(timing: Timing | MtkdError, reference: Any) -> float | None:
    """Largest difference of a logit from PyTorch's in float32."""
    if isinstance(timing, MtkdError) or timing.output is None or reference is None:
        return None
    output = timing.output
    if output.ndim != reference.ndim:
        output = _margins(output)
        reference = _margins(reference)
    largest = float(f"{np.abs(output - reference).max():.2e}")
    return largest if isfinite(largest) else None


def _margins(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of logits (1, N, 2, h, w), or of a frozen form, which gives margins (1, N, h, w)."""
    return output[:, :, 1] - output[:, :, 0] if output.ndim == 5 else output


def _dice(
    student: Path, form: Form, settings: Settings, places: Places
) -> dict[Variant, RuntimeDice | MtkdError]:
    """Dice of this run's student on the test surgeries by variant, at the size of its training.

    Nothing where no test frames are prepared; of a variant that can't compute it, its problem.
    """
    if not (places.prepared_frames / "test").is_dir():
        return {}
    card = load_card(student)
    anatomies = card.anatomies
    machine = settings.machine
    network = Candidate(
        card.architecture, len(anatomies), card.image_size, machine, checkpoint=student
    )
    frames = places.frames_of("test", anatomies)

    def measured(candidate: Candidate) -> RuntimeDice:
        if candidate.runtime != "PyTorch":
            graph = _whole_graph(candidate, Path(folder), places, anatomies)
            candidate = replace(candidate, graph=graph)
        function = _one_by_one(candidate.function())
        return runtime_dice(function, frames, anatomies, card.image_size)

    dice: dict[Variant, RuntimeDice | MtkdError] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in settings.variants(form):
            runtime, precision, decoding = variant
            candidate = replace(network, runtime=runtime, precision=precision, form=decoding)
            dice[variant] = attempted(partial(measured, candidate))
    return dice


def _whole_graph(
    candidate: Candidate, folder: Path, places: Places, anatomies: Sequence[str]
) -> Path:
    """From a frame to masks as a file; int8 is calibrated on training frames."""
    frame = example(candidate.size, "whole")
    graph = export_onnx(candidate.module(), frame, folder / f"{candidate.form}.onnx")
    if candidate.precision != "int8":
        return graph
    calibration = _calibration(places.frames_of("train", anatomies))
    return write_int8(graph, graph.with_suffix(".xml"), calibration)


def _calibration(frames: Sequence[Frame]) -> list[NDArray[np.uint8]]:
    selected = frames[:: max(1, len(frames) // CALIBRATED)]
    return [as_batch(load_frame(frame.image)) for frame in selected]


def _one_by_one(function: Callable[[NDArray[Any]], NDArray[Any]]) -> Run:
    return lambda frame: function(as_batch(frame))[0].astype(bool)


def _print(rows: Sequence[Row], settings: Settings) -> None:
    frame, seen = (f"{width}x{height}" for height, width in (settings.size, settings.seen_size))
    what = "its label map" if settings.gives == "labels" else "all its masks"
    table = Table(title=f"One {frame} frame to {what}, batch 1, network at {seen}")
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
        "Dice, own frames",
        "every frame",
        "paper, RTX 3090",
    ):
        table.add_column(column, justify="right")
    titles = {form.name: form.title for form in forms(settings.decoders)}
    for row in rows:
        table.add_row(
            row.name,
            titles[row.form],
            row.runtime,
            row.precision,
            row.decoding,
            row.problem or _short(row.milliseconds),
            _short(row.p95_milliseconds),
            _short(row.first_milliseconds),
            _short(row.network_milliseconds),
            _cell(row.fps, ".2f"),
            _cell(row.peak_mib, ".0f"),
            _cell(row.logit_difference, ".1e"),
            _cell(row.dice, ".2f"),
            _cell(row.every_dice, ".2f"),
            f"{row.paper_ms_rtx3090:.0f} ms" if row.paper_ms_rtx3090 else "-",
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
