"""``mtkd predict``: anatomy on a frame, a folder of frames, or a video."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import load_checkpoint
from pipeline.drawing import add_legend, draw, label_map
from pipeline.errors import MtkdError
from pipeline.export import Run, Segmenter, load_exported
from pipeline.files import write_atomically
from pipeline.machine import Machine
from pipeline.overlay import write_png
from pipeline.palette import colours_of
from pipeline.stopwatch import ahead
from pipeline.video import (
    Shown,
    VideoWriter,
    frame_rate,
    is_video,
    list_images,
    read_images,
    read_video,
    video_frames,
)
from stages.console import progress, say

Kind = Literal["overlay", "labels", "masks"]
Write = Callable[[Shown, NDArray[np.bool_]], None]


@dataclass(frozen=True)
class Drawing:
    """What is written.

    Attributes:
        kind: ``overlay``, ``labels`` (0 = none, i = the i-th anatomy), or ``masks`` (one PNG of 0 and 255 each).
        anatomies: which, in this order.
        opacity: of overlays, 0..1.
    """

    kind: Kind
    anatomies: Sequence[str]
    opacity: float

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """One per anatomy."""
        return [colour for _, colour in colours_of(self.anatomies).values()]

    def picture(self, shown: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """The frame with masks and legend."""
        return add_legend(draw(shown, masks, self.colours, self.opacity), self.anatomies, self.colours)


def run(
    source: Path, output: Path, model: Path, anatomies: Sequence[str], kind: Kind, opacity: float, machine: Machine
) -> None:
    """Segment and write.

    Args:
        source: a frame, a folder of frames, or a video.
        output: a folder; for overlays of a video, an .mp4 file.
        model: a checkpoint, or a file that ``mtkd export`` wrote.
        anatomies: which; all if none is named.
        kind: what is written.
        opacity: of overlays, 0..1.
        machine: where a checkpoint computes.

    Raises:
        MtkdError: an input or model that isn't there or can't be read, an anatomy that the model doesn't know.
    """
    segment, known = _model(model, machine)
    unknown = sorted(set(anatomies) - set(known))
    if unknown:
        raise MtkdError(f"{model} knows no {', '.join(unknown)}; it knows {', '.join(known)}")
    drawing = Drawing(kind, list(anatomies) or list(known), opacity)
    chosen = [known.index(anatomy) for anatomy in drawing.anatomies]
    _say_colours(drawing)
    video = is_video(source)
    images = [] if video else list_images(source)
    total = video_frames(source) if video else len(images)
    frames = read_video(source) if video else read_images(images)
    broken = []
    with _writer(source, output, drawing) as write, progress("frames") as bar, ThreadPoolExecutor(1) as writing:
        behind: Future[None] | None = None
        for done, shown in enumerate(ahead(frames), start=1):
            if shown.pixels is None:
                broken.append(shown.problem)
                say(f"skipped: {shown.problem}")
                continue
            masks = segment(shown.pixels)[chosen]
            if behind is not None:
                behind.result()
            behind = writing.submit(write, shown, masks)
            bar(done, max(total, done))
        if behind is not None:
            behind.result()
    say(f"-> {output}" + (f"; {len(broken)} broken frames were skipped" if broken else ""))


def _say_colours(drawing: Drawing) -> None:
    if drawing.kind == "overlay":
        named = colours_of(drawing.anatomies)
        say(", ".join(f"{anatomy.replace('_', ' ')}: {name}" for anatomy, (name, _) in named.items()))
    elif drawing.kind == "labels":
        say(", ".join(f"{i} = {name.replace('_', ' ')}" for i, name in enumerate(drawing.anatomies, start=1)))


def _model(path: Path, machine: Machine) -> tuple[Run, list[str]]:
    """A function from a frame of any size to its masks, and the anatomies that these are of."""
    if path.suffix == ".safetensors":
        network, card = load_checkpoint(path, "train_student")
        network = network.to(machine.torch_device)

        @torch.inference_mode()
        def segment(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
            size = (frame.shape[0], frame.shape[1])
            pixels = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)[None])).to(machine.torch_device)
            return Segmenter(network, size, card.image_size)(pixels)[0].cpu().numpy().astype(bool)

        return segment, list(card.anatomies)
    exported, label = load_exported(path)

    def at_its_size(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """An exported file takes frames of one size."""
        size = (frame.shape[1], frame.shape[0])
        if frame.shape[:2] == label.frame_size:
            return exported(frame)
        masks = exported(np.asarray(cv2.resize(frame, label.frame_size[::-1], interpolation=cv2.INTER_LINEAR)))
        back = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks]
        return np.stack(back).astype(bool)

    return at_its_size, list(label.anatomies)


@contextmanager
def _writer(source: Path, output: Path, drawing: Drawing) -> Iterator[Write]:
    if not (is_video(source) and drawing.kind == "overlay"):
        yield lambda shown, masks: _write_files(_place(source, shown, output), shown, masks, drawing)
        return
    if output.suffix.lower() != ".mp4":
        raise MtkdError(f"--output {output}: overlays of a video are a video, expected a name that ends in .mp4")
    writers: list[VideoWriter] = []

    def write(shown: Shown, masks: NDArray[np.bool_]) -> None:
        picture = drawing.picture(_pixels(shown), masks)
        if not writers:
            writers.append(VideoWriter(output, (picture.shape[0], picture.shape[1]), frame_rate(source)))
        writers[0].write(picture, shown.time)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()


def _place(source: Path, shown: Shown, output: Path) -> Path:
    """Where a frame's files go, without a suffix: as the folder of frames is, or numbered as in the video."""
    if is_video(source):
        return output / f"frame{int(shown.name.rsplit(' ', 1)[1]):06d}"
    path = Path(shown.name)
    return output / (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix("")


def _write_files(place: Path, shown: Shown, masks: NDArray[np.bool_], drawing: Drawing) -> None:
    if drawing.kind == "overlay":
        write_png(place.with_name(f"{place.name}.png"), drawing.picture(_pixels(shown), masks))
    elif drawing.kind == "labels":
        _write_grey(place.with_name(f"{place.name}.png"), label_map(masks))
    else:
        for anatomy, mask in zip(drawing.anatomies, masks, strict=True):
            _write_grey(place.with_name(f"{place.name}_{anatomy}.png"), mask.astype(np.uint8) * 255)


def _write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    write_atomically(path, cv2.imencode(".png", values)[1].tobytes())


def _pixels(shown: Shown) -> NDArray[np.uint8]:
    assert shown.pixels is not None
    return shown.pixels
