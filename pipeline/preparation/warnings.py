"""What is legal in a data set, and suspicious."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.dsad import Source, other_anatomies, unused
from pipeline.label_maps import has_label_maps, named_from_above
from pipeline.preparation.pictures import DARK, Checked, with_masks
from pipeline.preparation.settings import PrepareSettings
from pipeline.surgeries import SPLITS, Split

# The masks of an anatomy are suspicious if each covers more of its frame.
COVERED = 0.5
# Some are suspicious if more of them cover above this share than between the two shares: a large
# anatomy covers half of a frame more often than nearly all of it. The largest share in CamVid and
# CholecSeg8k is 60 %.
NEARLY_FULL = 0.8
LISTED = 20  # files that a warning names


@dataclass(frozen=True)
class Summary:
    """What was prepared.

    Attributes:
        counts: number of masks by split and anatomy.
        pictures: number of different frames that have a mask, by split.
        unlabelled: number of frames without a label.
        warnings: what is legal and suspicious, one line each.
        files: those of them that are about single files: they may not be masks, or are left out.
    """

    counts: dict[str, dict[str, int]]
    pictures: dict[str, int]
    unlabelled: int
    warnings: list[str]
    files: list[str]


def summary(
    checked: Sequence[Checked], settings: PrepareSettings, beside: Sequence[str]
) -> Summary:
    """What was prepared; ``beside`` are the warnings of what lies beside the masks."""
    anatomies = settings.anatomies
    sources = [frame.source for frame in checked]
    checked = [frame for frame in checked if frame.usable]
    labelled = [frame for frame in checked if frame.source.mask is not None]
    counts = {str(split): _counted(labelled, split, anatomies) for split in SPLITS}
    pictures = {str(split): _pictures_of(labelled, split) for split in SPLITS}
    files = [
        *_odd_files(checked, with_masks(labelled), anatomies),
        *_unused(settings, sources),
        *beside,
    ]
    warnings = [
        *_without_frames(counts["val"], "no val frames, its last epoch is kept"),
        *_without_frames(
            counts["test"], "no test frames, it has no result and is left out of the mean"
        ),
        *_without_foreground(with_masks(labelled)),
        *files,
        *_other_folders(settings, sources),
        *named_from_above(settings.data_sets),
    ]
    return Summary(counts, pictures, len(checked) - len(labelled), warnings, files)


def together(lines: Sequence[str], title: str) -> list[str]:
    """One warning for all of a kind, with their number first: many would hide the others.

    Args:
        lines: one for each.
        title: what they are; ``{}`` becomes " is" or "s are".
    """
    if not lines:
        return []
    count = f"{len(lines)} {title.format('s are' if len(lines) > 1 else ' is')}:"
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return ["\n  ".join([count, *lines[:LISTED], *more])]


def _unused(settings: PrepareSettings, sources: Sequence[Source]) -> list[str]:
    warnings: list[str] = []
    for data_set in settings.data_sets:
        unlabelled = None if data_set.name else settings.unlabelled_root
        names = [source.image.parents[1].name for source in sources if source.data_set == data_set]
        here = [s for s in sources if s.data_set == data_set or (s.mask is None and unlabelled)]
        there = list(dict.fromkeys([*names, *([] if data_set.name else settings.anatomies)]))
        warnings += unused(data_set.root, there, unlabelled, here)
    return warnings


def _other_folders(settings: PrepareSettings, sources: Sequence[Source]) -> list[str]:
    """Warnings of folders of anatomies that are not used."""
    warnings: list[str] = []
    for data_set in settings.data_sets:
        if not has_label_maps(data_set.root):
            theirs = {s.image.parents[1].name for s in sources if s.data_set == data_set}
            names = [*settings.anatomies, *theirs]
            warnings += other_anatomies(data_set.root, names, settings.unlabelled_root)
    return warnings


def _counted(labelled: Sequence[Checked], split: Split, anatomies: Sequence[str]) -> dict[str, int]:
    frames = Counter(frame.source.anatomy for frame in labelled if frame.split == split)
    return {anatomy: frames[anatomy] for anatomy in anatomies}


def _pictures_of(labelled: Sequence[Checked], split: Split) -> int:
    return len({frame.digest for frame in labelled if frame.split == split})


def _without_frames(counts: Mapping[str, int], consequence: str) -> list[str]:
    return [f"{anatomy}: {consequence}" for anatomy, frames in counts.items() if not frames]


def _without_foreground(labelled: Sequence[Checked]) -> list[str]:
    empty = [frame for frame in labelled if not frame.covered]
    vanished = [frame for frame in labelled if frame.covered and not frame.foreground]
    return [
        *_masks_that(empty, "empty, so that the frame teaches only background"),
        *_masks_that(
            vanished, "too thin for data.image_size: nothing of the anatomy is left in it"
        ),
    ]


def _odd_files(
    checked: Sequence[Checked], labelled: Sequence[Checked], anatomies: Sequence[str]
) -> list[str]:
    """Warnings of single files that may not be masks, or not frames."""
    odd = [frame for frame in checked if frame.odd]
    return [
        *_masks_that(odd, "not only 0 and 255; all above 0 is foreground"),
        *_full_or_inverted(labelled, anatomies),
        *_dark([frame for frame in checked if frame.dark]),
    ]


def _masks_that(checked: Sequence[Checked], are: str) -> list[str]:
    return together([str(frame.source.mask) for frame in checked], f"mask{{}} {are}")


def _full_or_inverted(labelled: Sequence[Checked], anatomies: Sequence[str]) -> list[str]:
    """Masks that cover the whole frame, and those that look as if black meant the anatomy.

    The latter are all masks of an anatomy, or some of them, that cover most of the frame.
    """
    full = [frame for frame in labelled if frame.covered == 1]
    warnings = _masks_that(full, "full: the anatomy covers the whole frame")
    some_inverted: list[Checked] = []
    for anatomy in anatomies:
        masks = [frame for frame in labelled if frame.source.anatomy == anatomy]
        least = min((frame.covered for frame in masks), default=1)
        if COVERED < least < 1:
            warnings.append(
                f"{anatomy}: it covers {least:.0%} of the frame or more in each of {len(masks)} "
                f"masks (suspicious above {COVERED:.0%}): are black and white exchanged? The "
                "anatomy must be white"
            )
        elif least <= COVERED:
            some_inverted += _nearly_full(masks)
    unlike = f"more than {NEARLY_FULL:.0%} white, unlike other masks of the anatomy"
    return warnings + _masks_that(
        some_inverted, f"{unlike}: are black and white exchanged? The anatomy must be white"
    )


def _nearly_full(masks: Sequence[Checked]) -> list[Checked]:
    """An anatomy's masks that cover nearly all of the frame, unless others lead over to them."""
    above = [frame for frame in masks if NEARLY_FULL < frame.covered < 1]
    between = [frame for frame in masks if COVERED < frame.covered <= NEARLY_FULL]
    return above if len(above) > len(between) else []


def _dark(checked: Sequence[Checked]) -> list[str]:
    if not checked:
        return []
    frames = f"{len(checked)} frame{'s are' if len(checked) > 1 else ' is'} nearly black"
    return [
        f"{frames}, without a pixel of {DARK} or more of 255 ({checked[0].source.image} first): a "
        "file of 16 bits may hold values of 10 or 12 bits, which must be scaled to 16"
    ]
