"""``mtkd export``: a checkpoint as ONNX and OpenVINO files, each compared with it first."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from cache import file_sha256
from pipeline.checkpoint import load_checkpoint
from pipeline.deployment.bundles import BUNDLES, Bundle, write_bundle
from pipeline.deployment.export import (
    ExportCard,
    Run,
    disagreement,
    load_exported,
    write_onnx,
    write_openvino,
)
from pipeline.deployment.onnx_graph import exporters
from pipeline.deployment.segmenter import Gives, Layout, Segmenter, resized
from pipeline.deployment.video import is_frame
from pipeline.dsad import read_frame
from pipeline.errors import MtkdError
from pipeline.evaluation.runtime_dice import runtime_dice
from pipeline.files import walk
from pipeline.prepared import Frame, load_frame
from stages.shared.console import say
from stages.shared.project import Places, require_folder

COMPARED = 8
CALIBRATED = 64
TESTED = 200


@dataclass(frozen=True)
class Options:
    """What is asked of an export.

    Attributes:
        frame_size: (H, W) of the frames that the files take.
        gives: what comes out: masks, labels or margins.
        layout: how a frame goes in.
        one_organ: whether a pixel belongs to one anatomy at most; in a label map it does anyway.
        int8: also quantise, calibrated on prepared training frames.
        bundles: for other platforms.
    """

    frame_size: tuple[int, int]
    gives: Gives = "masks"
    layout: Layout = "nchw"
    one_organ: bool = False
    int8: bool = False
    bundles: Sequence[Bundle] = ()


def run(
    places: Places, checkpoint: Path, output: Path, frames: Path | None, options: Options
) -> None:
    """Write ``<output>/<checkpoint>.onnx`` and ``.xml``, and what else is asked for.

    Args:
        places: of the project, for its prepared frames.
        checkpoint: a student or a teacher.
        output: folder.
        frames: folder of PNG frames to compare runtimes on, or None for the prepared test frames.
        options: what is asked.

    Raises:
        MtkdError: no frames to compare on, a file that can't be written, or one whose masks differ.
            Then nothing is delivered, and files of an earlier export stay.
    """
    require_folder(output)
    network, card = load_checkpoint(checkpoint)
    frame_size = options.frame_size
    compared = _frames(frames or places.prepared_frames / "test", frame_size)
    one_organ = options.one_organ or options.gives == "labels"
    label = ExportCard(
        card.architecture,
        card.anatomies,
        frame_size,
        card.image_size,
        card.mean,
        card.std,
        file_sha256(checkpoint),
        one_organ,
        options.gives,
        options.layout,
    )
    segmenter = Segmenter(
        network,
        frame_size,
        card.image_size,
        one_organ=one_organ,
        gives=options.gives,
        layout=options.layout,
    )
    with _delivery(output, checkpoint.stem) as folder:
        onnx_file, xml_file = (
            folder / f"{checkpoint.stem}{suffix}" for suffix in (".onnx", ".xml")
        )
        _write_compared(onnx_file, segmenter, label, compared)
        write_openvino(onnx_file, label, xml_file)
        float32 = _compare(xml_file, segmenter, compared)
        for kind in options.bundles:
            say(f"for {kind}: {write_bundle(kind, onnx_file, label, folder).name}")
        if options.int8:
            quantised = folder / f"{checkpoint.stem}_int8.xml"
            train = places.frames_of("train", card.anatomies)
            write_openvino(onnx_file, label, quantised, _calibration(train, frame_size))
            test = places.frames_of("test", card.anatomies)
            _say_cost(float32, quantised, label, test)
    _say_older(output, checkpoint.stem, options)
    say(f"-> {output}")


def _say_older(output: Path, stem: str, options: Options) -> None:
    """Name what an earlier export left beside this one's files."""
    made = {f"--bundle {kind}": f"{stem}_{kind}" for kind in BUNDLES if kind not in options.bundles}
    if not options.int8:
        made["--int8"] = f"{stem}_int8.xml"
    for option, name in made.items():
        if (output / name).exists():
            say(f"{name} is of an earlier export: {option} makes it anew")


@contextmanager
def _delivery(output: Path, stem: str) -> Iterator[Path]:
    """A folder in the output whose content moves there when all is written and compared."""
    folder = output / f".{stem}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        for content in sorted(folder.iterdir()):
            target = output / content.name
            if target.is_dir():
                shutil.rmtree(target)
            content.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _frames(place: Path, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    paths = (
        [path for path in walk(place) if path.suffix.lower() == ".png" and is_frame(path)]
        if place.is_dir()
        else []
    )
    if not paths:
        raise MtkdError(f"{place} holds no PNG frames: name a folder that does, --frames")
    selected = [paths[i * len(paths) // COMPARED] for i in range(min(COMPARED, len(paths)))]
    return [resized(read_frame(path), size) for path in selected]


def _calibration(frames: Sequence[Frame], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    selected = frames[:: max(1, len(frames) // CALIBRATED)][:CALIBRATED]
    return [resized(load_frame(frame.image), size) for frame in selected]


def _write_compared(
    file: Path, segmenter: Segmenter, label: ExportCard, frames: Sequence[NDArray[np.uint8]]
) -> None:
    """The ONNX file of the first exporter that can and whose masks are the checkpoint's."""
    *better, last = exporters()
    if not better:
        say(f"exported by {last}: onnxscript, which torch.export needs, is not installed")
    for exporter in better:
        try:
            write_onnx(segmenter, label, file, exporter)
            _compare(file, segmenter, frames)
            return
        except OSError:
            raise
        except Exception as error:  # whatever an exporter raises
            say(f"exported by {last}, since {exporter} failed: {_reason(error)}")
    write_onnx(segmenter, label, file, last)
    _compare(file, segmenter, frames)


def _reason(error: BaseException) -> str:
    """What an exporter failed of at first, in one line; around it there are PyTorch's own hints."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return shorten(" ".join(plain.split()), 160, placeholder=" ...")


def _compare(file: Path, segmenter: Segmenter, frames: Sequence[NDArray[np.uint8]]) -> Run:
    """Load the file and compare its masks with PyTorch's."""
    exported, _ = load_exported(file)
    wrong = disagreement(segmenter, exported, frames)
    if wrong:
        raise MtkdError(
            f"{file.name} is not delivered: its masks differ from the checkpoint's in {wrong} "
            "pixels"
        )
    say(
        f"{file.name}: same masks as the checkpoint on {len(frames)} frames, "
        f"{file.stat().st_size / 2**20:.1f} MiB"
    )
    return exported


def _say_cost(float32: Run, file: Path, label: ExportCard, test: Sequence[Frame]) -> None:
    """Dice of a quantised file beside the other one's, on labelled test frames."""
    if not test:
        say(f"{file.name}: no labelled test frames, so what it costs in Dice is not known")
        return
    test = test[:: -(-len(test) // TESTED)]
    int8, _ = load_exported(file)
    before, after = (
        runtime_dice(run, test, label.anatomies, label.frame_size) for run in (float32, int8)
    )
    cost = f"{file.name}: Dice {after.own} instead of {before.own} in float32"
    if after.every is not None:
        cost += f", of all decoders on every frame {after.every} instead of {before.every}"
    say(f"{cost}, on {len(test)} test frames")
