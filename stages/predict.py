"""``mtkd predict``: anatomy on a frame, a folder of frames, or a video."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGTERM, default_int_handler, signal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import matched
from pipeline.checkpoint import load_checkpoint
from pipeline.convert.exports import CocoExport, Export, NnunetExport
from pipeline.deployment.export import Run, load_exported
from pipeline.deployment.overlay import add_legend, draw, numbered
from pipeline.deployment.palette import colours_of
from pipeline.deployment.segmenter import as_batch, masks_at
from pipeline.deployment.video import (
    ESTIMATED,
    IMAGES,
    InputFrame,
    VideoWriter,
    frame_rate,
    is_video,
    list_images,
    pixel_aspect,
    read_images,
    read_video,
    unread_media,
    video_frames,
)
from pipeline.errors import MtkdError
from pipeline.files import entries, kinds, some, write_atomically
from pipeline.machine import Machine
from pipeline.png_files import write_png
from pipeline.prefetch import OneBehind, ahead, by_threads
from stages.shared.console import counted, progress, say
from stages.shared.frozen_network import FrozenNetwork
from stages.shared.project import require_folder

Kind = Literal["overlay", "labels", "masks", "coco", "nnunet"]
# Folders that an annotator can correct, frames included.
EXPORTS: dict[str, type[CocoExport] | type[NnunetExport]] = {
    "coco": CocoExport,
    "nnunet": NnunetExport,
}
ONE_LABEL = ("labels", "nnunet")  # kinds in which a pixel has one label
# Frames of an exported file that are computed at the same time.
IN_FLIGHT = 2
# Bytes of a file's name, less what is added to it while the file is written.
LONGEST_NAME = 255 - len("..partial")
Write = Callable[[InputFrame, NDArray[np.bool_]], None]


@dataclass(frozen=True)
class Options:
    """What is asked of a prediction.

    Attributes:
        anatomies: which; all if none is named.
        kind: what is written.
        opacity: of overlays, 0..1.
        one_organ: whether a pixel belongs to one anatomy at most; else several may claim it. In a
            label map, also nnU-Net's, it does in any case: the anatomy with the largest margin has
            it.
    """

    anatomies: Sequence[str]
    kind: Kind
    opacity: float
    one_organ: bool = False


@dataclass(frozen=True)
class Drawing:
    """What is written.

    Attributes:
        kind: ``overlay``, ``labels`` (0 = none, i = the model's i-th anatomy), ``masks`` (a PNG
            of 0 and 255 each), or a folder for annotators, ``coco`` or ``nnunet``.
        model_anatomies: an anatomy's place among them gives its colour and its label.
        anatomies: which of them, in the order of drawing.
        opacity: of overlays, 0..1.
    """

    kind: Kind
    model_anatomies: Sequence[str]
    anatomies: Sequence[str]
    opacity: float

    @property
    def indices(self) -> list[int]:
        """The anatomies' places among the model's."""
        return [self.model_anatomies.index(anatomy) for anatomy in self.anatomies]

    @property
    def labels(self) -> list[int]:
        """One per anatomy."""
        return [place + 1 for place in self.indices]

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """One per anatomy."""
        named = colours_of(self.model_anatomies)
        return [named[anatomy][1] for anatomy in self.anatomies]

    def picture(self, frame: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """The frame with masks and legend."""
        return add_legend(
            draw(frame, masks, self.colours, self.opacity), self.anatomies, self.colours
        )

    def files(self, place: Path) -> list[Path]:
        """What is written for a frame whose place is this, without a suffix."""
        endings = [f"_{anatomy}" for anatomy in self.anatomies] if self.kind == "masks" else [""]
        return [place.with_name(f"{place.name}{ending}.png") for ending in endings]


def run(
    source: Path,
    output: Path,
    model: Path,
    options: Options,
    machine: Machine,
) -> None:
    """Segment and write.

    Args:
        source: a frame, a folder of frames, or a video.
        output: a folder; for overlays of a video, an .mp4 file.
        model: a checkpoint, or a file that ``mtkd export`` wrote.
        options: what is asked.
        machine: where a checkpoint computes.

    Raises:
        MtkdError: an input or model that isn't there or can't be read, an anatomy that the model
            doesn't know, an output that is an input or that two frames share, or no frame that
            could be decoded.
    """
    loaded = load_model(model, machine, options)
    selected = _selected(options.anatomies, loaded.anatomies, model)
    drawing = Drawing(options.kind, loaded.anatomies, selected, options.opacity)
    plan = _plan(source, output, drawing)
    _require_apart(source, output, drawing.kind)
    if output.is_dir() and any(output.iterdir()):
        say(f"{output} holds files already: those of the same names are replaced, the others stay")
    _say_colours(drawing)
    with _stopped_as_by_hand(), _writer(source, output, drawing) as write:
        written, broken = _segment_all(plan, loaded, drawing, write)
    if not written:
        raise MtkdError(f"{source}: no frame of it can be decoded, nothing is written")
    _say_missing(plan, written)
    were = "was" if broken == 1 else "were"
    skipped = f"; {counted(broken, 'broken frame')} {were} skipped" if broken else ""
    say(f"-> {output}{skipped}")


@dataclass(frozen=True)
class Model:
    """What segments frames.

    Attributes:
        segment: from a frame of any size to its masks.
        anatomies: that these are of.
        in_flight: how many frames it takes at the same time.
    """

    segment: Run
    anatomies: list[str]
    in_flight: int


@dataclass(frozen=True)
class _Plan:
    """What is read.

    Attributes:
        source: a frame, a folder of frames, or a video.
        images: the frames' files; of a video, none.
        total: how many frames there are.
        exact: whether that is counted, and not estimated from a video's duration.
    """

    source: Path
    images: list[Path]
    total: int
    exact: bool

    def frames(self) -> Iterator[InputFrame]:
        """Each frame, or why it cannot be read."""
        return read_images(self.images) if self.images else read_video(self.source)


def _plan(source: Path, output: Path, drawing: Drawing) -> _Plan:
    """What is read; nothing is written before all outputs are known to be free.

    Raises:
        MtkdError: as of :func:`run`.
    """
    if is_video(source):
        if drawing.kind == "overlay":
            _require_video(output)
        else:
            _require_folder_of_frames(output)
        _check_outputs([(source, output)])
        total, exact = video_frames(source)
        return _Plan(source, [], total, exact)
    _require_folder_of_frames(output)
    _say_unread(source)
    images = list_images(source)
    _check_outputs(_planned(source, images, output, drawing))
    return _Plan(source, images, len(images), exact=True)


def _selected(anatomies: Sequence[str], model_anatomies: Sequence[str], model: Path) -> list[str]:
    """The anatomies that were asked for, as the model spells them; all if none was."""
    names = matched(anatomies, model_anatomies)
    unknown = sorted(set(names) - set(model_anatomies))
    if unknown:
        raise MtkdError(
            f"{model} knows no {', '.join(unknown)}; it knows {', '.join(model_anatomies)}"
        )
    return list(dict.fromkeys(names)) or list(model_anatomies)


def _segment_all(plan: _Plan, model: Model, drawing: Drawing, write: Write) -> tuple[int, int]:
    """Segment and write each frame: decoding, networks and writing work side by side.

    Returns:
        How many frames were written, and how many could not be decoded.
    """

    def segmented(frame: InputFrame) -> tuple[InputFrame, NDArray[np.bool_] | None]:
        if frame.pixels is None:
            return frame, None
        return frame, model.segment(frame.pixels)[drawing.indices]

    written = 0
    broken = 0
    with progress("frames") as bar, OneBehind() as thread:
        for frame, masks in by_threads(segmented, ahead(plan.frames()), model.in_flight):
            if masks is None:
                broken += 1
                say(f"skipped: {frame.problem}")
                continue
            thread.begin(write, frame, masks)
            written += 1
            bar(written + broken, max(plan.total, written + broken))
        thread.wait()
    return written, broken


def _say_missing(plan: _Plan, written: int) -> None:
    """Say so if fewer frames were read than there are."""
    if written < (plan.total if plan.exact else ESTIMATED * plan.total):
        about = "" if plan.exact else "about "
        tells = "" if plan.images else f"the file tells of {about}"
        say(f"{plan.source}: {tells}{plan.total} frames, {written} could be read")


def _require_video(output: Path) -> None:
    if output.suffix.lower() != ".mp4" or output.is_dir():
        raise MtkdError(
            f"--output {output}: overlays of a video are a file, expected a name that ends in .mp4"
        )


def _require_folder_of_frames(output: Path) -> None:
    require_folder(output)
    if output.suffix.lower() in IMAGES and not output.exists():
        raise MtkdError(
            f"--output {output}: frames go into a folder, under their own names; name one"
        )


def _require_apart(source: Path, output: Path, kind: Kind) -> None:
    """Keep results out of what the next run reads, and away from what an annotator corrected.

    Raises:
        MtkdError: the output lies in the source, or what is to be corrected has no folder of its
            own.
    """
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise MtkdError(
            f"--output {output}: lies in {source}, and the next run would read it as frames: "
            "choose another folder"
        )
    if kind in EXPORTS and output.is_dir() and entries(output):
        raise MtkdError(
            f"--output {output}: holds files, which an annotator may have corrected: name a new "
            "folder, or remove this one"
        )


def _planned(
    source: Path, images: Sequence[Path], output: Path, drawing: Drawing
) -> list[tuple[Path, Path]]:
    """Each frame with a file that will be written from it."""
    planned = []
    export = _export(output, drawing)
    for image in images:
        if export is None:
            files = drawing.files(_place(source, str(image), output))
        else:
            files = export.files(_named_place(source, str(image)))
        planned += [(image, file) for file in files]
    return planned


def _check_outputs(planned: Sequence[tuple[Path, Path]]) -> None:
    """Refuse what would destroy an input, or a frame's result by that of another."""
    inputs = {source.resolve() for source, _ in planned}
    made_from = dict[Path, Path]()
    for source, file in planned:
        target = file.resolve()
        if target in inputs:
            raise MtkdError(f"{file} is an input and would be overwritten: choose another --output")
        other = made_from.setdefault(target, source)
        if other != source:
            raise MtkdError(
                f"{other} and {source} would both be written to {file}: rename one of them"
            )
        if len(os.fsencode(file.name)) > LONGEST_NAME:
            raise MtkdError(
                f"{source}: the name of its result, {file.name}, is too long for a file: rename "
                "the frame"
            )


def _say_unread(source: Path) -> None:
    unread = unread_media(source) if source.is_dir() else []
    again = [path for path in unread if path.is_dir()]
    if again:
        say(f"warning: read once, though there under two names: {some(again)}")
    if others := [path for path in unread if path not in again]:
        say(f"warning: not read: {kinds(others)}")


def _say_colours(drawing: Drawing) -> None:
    if drawing.kind == "overlay":
        named = colours_of(drawing.model_anatomies)
        say(
            ", ".join(
                f"{anatomy.replace('_', ' ')}: {named[anatomy][0]}" for anatomy in drawing.anatomies
            )
        )
    elif drawing.kind == "labels":
        pairs = zip(drawing.labels, drawing.anatomies, strict=True)
        say(", ".join(f"{label} = {anatomy.replace('_', ' ')}" for label, anatomy in pairs))


def load_model(path: Path, machine: Machine, options: Options) -> Model:
    """A checkpoint on the machine's device, or an exported file on the processor.

    Raises:
        MtkdError: as of :func:`run`; or masks of an exported file were decided otherwise.
    """
    if path.suffix == ".safetensors":
        network, card = load_checkpoint(path)
        frozen = FrozenNetwork(
            network.to(machine.torch_device),
            machine.torch_device,
            card.image_size,
            one_organ=options.one_organ or options.kind in ONE_LABEL,
        )

        def segment(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
            return frozen(as_batch(frame))[0].astype(bool)

        return Model(segment, list(card.anatomies), 1)
    exported, label = load_exported(path, one_organ=options.one_organ, in_flight=IN_FLIGHT)
    if options.one_organ and label.gives == "masks" and not label.one_organ:
        raise MtkdError(
            f"--one-organ: the masks of {path} were decided one by one: export it with --one-organ"
        )

    def at_its_size(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """An exported file takes frames of one size."""
        return masks_at(exported(frame), frame.shape[:2])

    return Model(at_its_size, list(label.anatomies), IN_FLIGHT)


@contextmanager
def _stopped_as_by_hand() -> Iterator[None]:
    """Signals that end a program act as Ctrl-C does: what was written stays."""
    before = {number: signal(number, default_int_handler) for number in (SIGTERM, SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal(number, handler)


@contextmanager
def _writer(source: Path, output: Path, drawing: Drawing) -> Iterator[Write]:
    export = _export(output, drawing)
    if export is not None:
        with _exported(source, export) as write:
            yield write
        return
    if not is_video(source):
        yield lambda frame, masks: _write_files(
            _place(source, frame.name, output), frame, masks, drawing
        )
        return
    with (_one_video if drawing.kind == "overlay" else _numbered_frames)(
        source, output, drawing
    ) as write:
        yield write


def _export(output: Path, drawing: Drawing) -> Export | None:
    """The folder for annotators that is asked for, if one is."""
    kind = EXPORTS.get(drawing.kind)
    return None if kind is None else kind(output, drawing.anatomies)


@contextmanager
def _exported(source: Path, export: Export) -> Iterator[Write]:
    """Frames with their masks; what describes them all is written whatever stops them."""

    def write(frame: InputFrame, masks: NDArray[np.bool_]) -> None:
        export.write(_named_place(source, frame.name), _pixels(frame), masks)

    try:
        yield write
    finally:
        export.close()


def _named_place(source: Path, name: str) -> str:
    """A frame's path without suffix, whose folder names its surgery.

    That is its folder within the source; the source itself for a frame that lies in no folder; or
    the name of the video.
    """
    place = _place(source, name, Path())
    if is_video(source):
        return f"{source.stem}/{place}"
    if source.is_dir() and place.parent == Path():
        return f"{source.resolve().name}/{place}"
    return place.as_posix()


@contextmanager
def _one_video(source: Path, output: Path, drawing: Drawing) -> Iterator[Write]:
    """A video of overlays; what stops it keeps what was written, and says so."""
    writers: list[VideoWriter] = []

    def write(frame: InputFrame, masks: NDArray[np.bool_]) -> None:
        picture = drawing.picture(_pixels(frame), masks)
        if not writers:
            writers.append(
                VideoWriter(
                    output,
                    (picture.shape[0], picture.shape[1]),
                    frame_rate(source),
                    pixel_aspect(source),
                )
            )
        writers[0].write(picture, frame.time)

    try:
        yield write
        for writer in writers:
            writer.close()
    except BaseException:
        for writer in writers:
            with suppress(MtkdError):  # what stopped it says more
                writer.close()
            if writer.kept:
                say(f"{output} ends early: it holds what was written until then")
        raise


@contextmanager
def _numbered_frames(source: Path, output: Path, drawing: Drawing) -> Iterator[Write]:
    """PNG files, and ``times.csv`` with the time of each."""
    rows = ["frame,seconds"]

    def write(frame: InputFrame, masks: NDArray[np.bool_]) -> None:
        place = _place(source, frame.name, output)
        _write_files(place, frame, masks, drawing)
        rows.append(f"{place.name},{'' if frame.time is None else f'{float(frame.time):.6f}'}")

    try:
        yield write
    finally:
        if len(rows) > 1:
            write_atomically(output / "times.csv", ("\n".join(rows) + "\n").encode())


def _place(source: Path, name: str, output: Path) -> Path:
    """Where a frame's files go, without a suffix: as in its folder, or by its number."""
    if is_video(source):
        return output / f"frame{int(name.rsplit(' ', 1)[1]):06d}"
    path = Path(name)
    return output / (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix(
        ""
    )


def _write_files(
    place: Path, frame: InputFrame, masks: NDArray[np.bool_], drawing: Drawing
) -> None:
    files = drawing.files(place)
    if drawing.kind == "overlay":
        write_png(files[0], drawing.picture(_pixels(frame), masks))
    elif drawing.kind == "labels":
        write_png(files[0], numbered(masks, drawing.labels))
    else:
        for file, mask in zip(files, masks, strict=True):
            write_png(file, mask.astype(np.uint8) * 255)


def _pixels(frame: InputFrame) -> NDArray[np.uint8]:
    assert frame.pixels is not None
    return frame.pixels
