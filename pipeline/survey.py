"""All pictures of a data set with what is drawn on them, also where the data set has problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dsad import DataError, Source, read_mask, scan_unlabelled
from pipeline.labels import load_labels, targets
from pipeline.perceptual_hash import perceptual_hash
from pipeline.prefetch import by_threads
from pipeline.preparation.indices import firsts
from pipeline.preparation.pictures import Checked, Legends, is_dark
from pipeline.preparation.prepare import Examined, Progress, examine
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import Frame, list_frames, list_unlabelled
from pipeline.settings import UNLABELLED
from pipeline.surgeries import SPLITS

ALL = "all"  # in place of a split, where the data set has none


@dataclass(frozen=True)
class Known:
    """What is known of a picture's pixels for one decoder: shares of the frame, 0..1.

    Attributes:
        anatomy: of pixels that are known to show it.
        background: of pixels that are known not to.
    """

    anatomy: float
    background: float


@dataclass(frozen=True)
class Look:
    """What a frame looks like.

    Attributes:
        brightness: mean grey value, 0..255.
        dark: whether it is nearly black.
        fingerprint: its perceptual hash; None of a frame without structure.
    """

    brightness: float
    dark: bool
    fingerprint: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Picture:
    """One picture of a data set, and all that its labels say.

    Attributes:
        frames: as they were read: one for each anatomy that the picture is labelled for, or the
            only one.
        look: what it looks like.
        split: of its surgery; ``all`` without splits, ``unlabelled`` of a picture without a mask.
        shows: by other anatomies than those of its masks, whether it shows them; without those of
            which nothing is known.
        known: by anatomy, what is known of the pixels; empty of a picture without a mask.
    """

    frames: Sequence[Checked]
    look: Look
    split: str
    shows: Mapping[str, bool]
    known: Mapping[str, Known]

    @property
    def source(self) -> Source:
        """Where it is from; its first file if it has several."""
        return self.frames[0].source

    @property
    def surgery(self) -> str:
        """Its surgery's folder."""
        return self.source.surgery

    @property
    def id(self) -> str:
        """Such as ``colon/04/image03``, or ``04/image03`` of a data set of label maps."""
        return id_of(self.source)

    @property
    def areas(self) -> dict[str, float]:
        """By each anatomy of which there is a mask, its share of the frame, 0..1."""
        labelled = [frame for frame in self.frames if frame.source.mask is not None]
        return {frame.source.anatomy: frame.covered for frame in labelled}


def id_of(source: Source) -> str:
    """A frame's name for readers; a label map belongs to no single anatomy."""
    return source.id if source.value is None else f"{source.surgery}/{source.name}"


@dataclass(frozen=True)
class Survey:
    """A data set.

    Attributes:
        anatomies: those that are described, in order.
        pictures: those that can be used, in order.
        problems: what is refused before training, one line each.
        warnings: what is legal and suspicious, one line each.
        legends: of its label maps.
    """

    anatomies: Sequence[str]
    pictures: Sequence[Picture]
    problems: Sequence[str]
    warnings: Sequence[str]
    legends: Legends


def look_at(frame: NDArray[np.uint8]) -> Look:
    """Measure a frame (H, W, 3) RGB."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return Look(float(cv2.mean(grey)[0]), is_dark(frame), perceptual_hash(frame))


def survey(
    settings: PrepareSettings, folder: Path, workers: int = 1, progress: Progress | None = None
) -> Survey:
    """Read data sets of masks or label maps.

    Args:
        settings: which, and their splits; what is known of pixels is counted at ``image_size``.
        folder: an empty one, for labels.
        workers: threads that read.
        progress: called with (done, total).

    Raises:
        DataError: a root is missing, is not a folder, or holds no folders; or no frame can be used.
    """
    settings, problems = _with_readable_roots(settings)
    examined = examine(settings, folder, look_at, workers, progress)
    problems += examined.problems
    if not examined.frames:
        raise DataError(problems or [f"{settings.root} holds no frames"])
    prepared = _prepared(folder, settings)
    anatomies = list(dict.fromkeys(settings.anatomies))

    def picture(frames: Sequence[Checked]) -> Picture:
        first, *copies = [prepared[frame.source.id] for frame in frames]
        return _picture(frames, replace(first, copies=tuple(copies)), anatomies, settings)

    pictures = list(by_threads(picture, _by_picture(examined), workers))
    # Without splits nobody has said what is measured on which frames, or at which size.
    summary = examined.summary
    warnings = summary.warnings if _has_splits(settings) else summary.files
    return Survey(anatomies, pictures, problems, warnings, examined.legends)


def _has_splits(settings: PrepareSettings) -> bool:
    return bool(settings.splits.val or settings.splits.test)


def _with_readable_roots(settings: PrepareSettings) -> tuple[PrepareSettings, list[str]]:
    """The settings without a folder of unlabelled frames that cannot be read, and why it cannot."""
    if settings.unlabelled_root is None:
        return settings, []
    try:
        scan_unlabelled(settings.unlabelled_root, settings.splits)
    except DataError as error:
        return replace(settings, unlabelled_root=None), list(error.problems)
    return settings, []


def _prepared(folder: Path, settings: PrepareSettings) -> dict[str, Frame]:
    """What :func:`examine` wrote into a folder, by id."""
    frames = list_unlabelled(folder / "frames")
    for split in SPLITS:
        listed = list_frames(folder / "frames", folder / "labels", split, settings.anatomies)
        frames += chain.from_iterable(frame.labels for frame in listed)
    return {frame.id: frame for frame in frames}


def _by_picture(examined: Examined) -> list[list[Checked]]:
    """The frames that show the same picture, in every split as in training."""
    first_of = firsts(examined.frames)
    pictures: dict[str, list[Checked]] = {}
    for frame in examined.frames:
        pictures.setdefault(first_of.get(frame.source.id, frame.source.id), []).append(frame)
    return list(pictures.values())


def _picture(
    frames: Sequence[Checked],
    prepared: Frame,
    anatomies: Sequence[str],
    settings: PrepareSettings,
) -> Picture:
    """A picture by its frames, and by what was prepared of them: one frame with its copies."""
    look = frames[0].measures
    assert isinstance(look, Look)
    if not prepared.labelled:
        return Picture(frames, look, UNLABELLED, {}, {})
    split = frames[0].split if _has_splits(settings) else ALL
    known = known_pixels(prepared, anatomies, settings.image_size)
    return Picture(frames, look, split, _others_shown(prepared), known)


def _others_shown(prepared: Frame) -> dict[str, bool]:
    """By anatomies for which a frame has no label, whether it shows them; one label is enough."""
    shows: dict[str, bool] = {}
    for name, shown in chain.from_iterable(frame.shows.items() for frame in prepared.labels):
        if name not in prepared.anatomies:
            shows[name] = shown or shows.get(name, False)
    return shows


def known_pixels(frame: Frame, anatomies: Sequence[str], size: tuple[int, int]) -> dict[str, Known]:
    """What is known of a frame's pixels for the decoder of each anatomy.

    Args:
        frame: with a label, and its copies.
        anatomies: of the decoders.
        size: (H, W) of its label.

    Raises:
        MissingFileError, DamagedFileError: of a label.
    """
    labels = load_labels(frame, anatomies, size)
    # A target depends on nothing but the value of its pixel, so each value is enough once.
    values, counts = np.unique(labels.organ, return_counts=True)
    organ = torch.from_numpy(values)[None, None]
    target = targets(organ, torch.from_numpy(labels.background)[None])[0, :, 0].numpy()
    shares = counts / counts.sum()
    return {
        name: Known(float(shares[row == 1].sum()), float(shares[row == 0].sum()))
        for name, row in zip(anatomies, target, strict=True)
    }


def read_drawn(picture: Picture, anatomy: str, legends: Legends) -> NDArray[np.bool_]:
    """The mask (H, W) of an anatomy on a picture that has one.

    Args:
        picture: which.
        anatomy: one of its ``areas``.
        legends: of the data set's label maps.

    Raises:
        DataError: the file cannot be read.
    """
    frame = next(frame for frame in picture.frames if frame.source.anatomy == anatomy)
    source = frame.source
    assert source.mask is not None and source.data_set is not None
    if source.value is None:
        return read_mask(source.mask)[0]
    return legends[source.data_set].read(source.mask, frame.size) == source.value
