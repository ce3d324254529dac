"""``mtkd export``: a checkpoint as ONNX and OpenVINO files, each compared with it first."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import file_sha256
from pipeline.checkpoint import load_checkpoint
from pipeline.deployment.export import (
    ExportCard,
    Run,
    Segmenter,
    disagreement,
    load_exported,
    write_onnx,
    write_openvino,
)
from pipeline.deployment.video import is_frame
from pipeline.dsad import read_frame
from pipeline.errors import MtkdError
from pipeline.evaluation.runtime_dice import resized, runtime_dice
from pipeline.files import walk
from pipeline.prepared import Frame, load_frame
from stages.shared.console import say
from stages.shared.project import Places, require_folder

COMPARED = 8
CALIBRATED = 64
TESTED = 200


def run(
    places: Places,
    checkpoint: Path,
    output: Path,
    frame_size: tuple[int, int],
    frames: Path | None,
    int8: bool,
    one_organ: bool,
) -> None:
    """Write ``<output>/<checkpoint>.onnx`` and ``.xml``, with ``int8`` also ``_int8.xml``.

    Args:
        places: of the project, for its prepared frames.
        checkpoint: a student or a teacher.
        output: folder.
        frame_size: (H, W) of the frames that the files take.
        frames: folder of PNG frames to compare runtimes on, or None for the prepared test frames.
        int8: also quantise, calibrated on prepared training frames.
        one_organ: whether a pixel belongs to one anatomy at most.

    Raises:
        MtkdError: no frames to compare on, a file that can't be written, or one whose masks differ.
            Then nothing is delivered, and files of an earlier export stay.
    """
    require_folder(output)
    network, card = load_checkpoint(checkpoint)
    compared = _frames(frames or places.prepared_frames / "test", frame_size)
    label = ExportCard(
        card.architecture,
        card.anatomies,
        frame_size,
        card.image_size,
        card.mean,
        card.std,
        file_sha256(checkpoint),
        one_organ,
    )
    segmenter = Segmenter(network, frame_size, card.image_size, one_organ=one_organ)
    with _delivery(output, checkpoint.stem) as folder:
        onnx_file, xml_file = (
            folder / f"{checkpoint.stem}{suffix}" for suffix in (".onnx", ".xml")
        )
        write_onnx(segmenter, label, onnx_file)
        _compare(onnx_file, segmenter, compared)
        write_openvino(onnx_file, label, xml_file)
        float32 = _compare(xml_file, segmenter, compared)
        if int8:
            quantised = folder / f"{checkpoint.stem}_int8.xml"
            train = places.frames_of("train", card.anatomies)
            write_openvino(onnx_file, label, quantised, _calibration(train, frame_size))
            test = places.frames_of("test", card.anatomies)
            _say_cost(float32, quantised, label, test)
    say(f"-> {output}")


@contextmanager
def _delivery(output: Path, stem: str) -> Iterator[Path]:
    """A folder in the output whose files move there together when all are written and compared."""
    folder = output / f".{stem}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in sorted(folder.iterdir()):
            file.replace(output / file.name)
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
    say(f"{file.name}: Dice {after} instead of {before} in float32, on {len(test)} test frames")
