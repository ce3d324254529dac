"""Writing what lies beside the pictures: indices, and what is known of frames without a mask."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product
from pathlib import Path

from pipeline.annotations import write_annotators, write_presence
from pipeline.dsad import Source
from pipeline.preparation.pictures import Checked, Folders, Legends, place_in, with_masks
from pipeline.preparation.settings import PrepareSettings
from pipeline.preparation.warnings import together
from pipeline.prepared import COPIES, INDEX, LABELLED_BY_MAP, MAPPED, legend_file, load_label
from pipeline.settings import UNLABELLED
from pipeline.surgeries import SPLITS, Split


def write_indices(
    checked: Sequence[Checked], settings: PrepareSettings, folders: Folders, legends: Legends
) -> list[str]:
    """Write the indices, and what is known beside the masks.

    Returns:
        Warnings.
    """
    for split, anatomy in product(SPLITS, settings.anatomies):
        frames = _those_of(checked, split, anatomy)
        _write_frame_index(frames, folders.frames / split / anatomy)
        _write_label_index(frames, folders.labels / split / anatomy)
    _write_copies(checked, folders.frames / "train")
    unlabelled = [frame for frame in checked if frame.source.mask is None]
    _write_frame_index(unlabelled, folders.frames / UNLABELLED)
    warnings: list[str] = []
    contradictions: list[str] = []
    pictures = _pictures(checked)
    others = _other_masks(pictures)
    for split, anatomy in product(SPLITS, settings.anatomies):
        frames = _those_of(checked, split, anatomy)
        folder = folders.labels / split / anatomy
        of_folder, contradicted = _write_beside(frames, folder, legends, others)
        warnings += of_folder
        contradictions += contradicted
    for anatomy in settings.anatomies:
        masks = with_masks(_those_of(checked, "test", anatomy))
        sources = [frame.source for frame in masks]
        warnings += write_annotators(
            sources, folders.labels / "test" / anatomy, settings.image_size
        )
    return [
        *warnings,
        *together(contradictions, "weak label{} contradicted by what is drawn, which is believed"),
        *together(
            _contradicted(checked),
            "label map{} not as the mask; where they differ nothing is known",
        ),
        *together(
            _overlapping(pictures, folders),
            "picture{} in masks of several anatomies that overlap; there nothing is known",
        ),
    ]


def firsts(checked: Sequence[Checked]) -> dict[str, str]:
    """Of each labelled frame, by its id, the first one in its split that shows the same picture.

    A picture that an anatomy has twice is two frames.
    """
    first_with: dict[tuple[str, str, int], str] = {}
    times: Counter[tuple[str, str, str]] = Counter()
    found = {}
    for frame in checked:
        if frame.source.mask is None:
            continue
        key = (frame.split, frame.digest, frame.source.anatomy)
        copy = (frame.split, frame.digest, times[key])
        times[key] += 1
        found[frame.source.id] = first_with.setdefault(copy, frame.source.id)
    return found


def _those_of(checked: Sequence[Checked], split: Split, anatomy: str) -> list[Checked]:
    return [frame for frame in checked if (frame.split, frame.source.anatomy) == (split, anatomy)]


def _write_copies(checked: Sequence[Checked], folder: Path) -> None:
    """Write which training frames of several anatomies show the same picture, if some do."""
    training = [frame for frame in checked if frame.split == "train"]
    rows = [(copy, first) for copy, first in firsts(training).items() if copy != first]
    if rows:
        _write_table(folder / COPIES, ("frame", "copy_of"), rows)


def _write_beside(
    checked: Sequence[Checked],
    folder: Path,
    legends: Legends,
    others: Mapping[Source, Mapping[str, Path]],
) -> tuple[list[str], list[str]]:
    """Write which frames of one anatomy have a map, and what they show.

    Args:
        checked: the frames.
        folder: of their labels.
        legends: of label maps.
        others: see :func:`_other_masks`.

    Returns:
        Warnings, and where weak labels are contradicted.
    """
    maps = {frame.source: frame.map for frame in checked if frame.map is not None}
    if maps:
        _write_mapped(list(maps), folder, legends)
    shown = {source: each.shows for source, each in maps.items()}
    return write_presence([frame.source for frame in checked], shown, others, folder)


def _other_masks(pictures: Sequence[Sequence[Checked]]) -> dict[Source, dict[str, Path]]:
    """Of each frame with a mask: those of its picture in other folders that are not empty."""
    masks: dict[Source, dict[str, Path]] = {}
    for copies in pictures:
        for frame, other in product(with_masks(copies), copies):
            if other is not frame and other.source.mask is not None and other.covered:
                masks.setdefault(frame.source, {})[other.source.anatomy] = other.source.mask
    return masks


def _pictures(checked: Sequence[Checked]) -> list[list[Checked]]:
    """The labelled frames of each picture."""
    first_of = firsts(checked)
    pictures: dict[str, list[Checked]] = {}
    for frame in checked:
        if frame.source.id in first_of:
            pictures.setdefault(first_of[frame.source.id], []).append(frame)
    return list(pictures.values())


def _write_mapped(sources: Sequence[Source], folder: Path, legends: Legends) -> None:
    """Write which frames of one anatomy have a map, and what its values mean."""
    for data_set in dict.fromkeys(source.data_set for source in sources):
        assert data_set is not None
        lines = "".join(f"{name}\n" for name in legends[data_set].names)
        legend_file(folder, data_set.name).write_text(lines)
    _write_table(folder / MAPPED, ("frame",), [(_place(source),) for source in sources])
    alone = [(_place(source),) for source in sources if source.value is not None]
    if alone:
        _write_table(folder / LABELLED_BY_MAP, ("frame",), alone)


def _contradicted(checked: Sequence[Checked]) -> list[str]:
    return [
        f"{frame.map.path}: differs from {frame.source.mask} in {frame.map.contradicted:.2%} of "
        "the pixels"
        for frame in checked
        if frame.map is not None and frame.map.contradicted
    ]


def _overlapping(pictures: Sequence[Sequence[Checked]], folders: Folders) -> list[str]:
    """Pictures that lie in several folders, whose labels there claim the same pixels."""
    pairs = chain.from_iterable(combinations(copies, 2) for copies in pictures)
    return [
        f"{one.source.mask} and {other.source.mask}: overlap in {share:.2%} of the pixels"
        for one, other in pairs
        if (share := _overlap(one, other, folders))
    ]


def _overlap(one: Checked, other: Checked, folders: Folders) -> float:
    """The share of pixels that labels of two anatomies both claim, each of its own file."""
    if one.source.image == other.source.image or one.source.anatomy == other.source.anatomy:
        return 0.0
    labels = [load_label(folders.labels / place_in(f.split, f.source)) for f in (one, other)]
    return float(((labels[0] == 1) & (labels[1] == 1)).mean())


def _write_frame_index(checked: Sequence[Checked], folder: Path) -> None:
    rows = [(_place(frame.source), *frame.size) for frame in checked]
    _write_index(folder, ("frame", "height", "width"), rows)


def _write_label_index(checked: Sequence[Checked], folder: Path) -> None:
    rows = [(_place(frame.source), frame.foreground) for frame in checked]
    _write_index(folder, ("frame", "foreground"), rows)


def _place(source: Source) -> str:
    return f"{source.surgery}/{source.name}"


def _write_index(folder: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / INDEX, header, rows)


def _write_table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
