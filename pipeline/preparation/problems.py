"""What is wrong with a data set, so that nothing of it is written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from pipeline.dsad import Source, linked_folders
from pipeline.preparation.pictures import Checked
from pipeline.preparation.settings import PrepareSettings
from pipeline.settings import Splits

# Share of the label maps that may show something else than their masks before none is believed.
WRONG = 0.5


def problems_of(checked: Sequence[Checked], settings: PrepareSettings) -> list[str]:
    """What is wrong with single files, and with all of them together."""
    problems: list[str] = []
    for frame in checked:
        problems += frame.problems
    return problems + _leaks(checked) + _too_few(checked, settings) + _foreign_maps(checked)


def split_problems(splits: Splits, surgeries: Mapping[str | int, str]) -> list[str]:
    """Surgeries of ``data.splits`` that are not there; ``surgeries`` are the folders by id."""
    names = ", ".join(surgeries.values())
    ids = [*product(("val",), splits.val), *product(("test",), splits.test)]
    return [
        f"data.splits.{part}: no anatomy has a folder of surgery {surgery}; there: {names}"
        for part, surgery in ids
        if surgery not in surgeries
    ]


def link_problems(sources: Sequence[Source]) -> list[str]:
    """Folders that are links."""
    return [
        f"{folder} is a link to a folder, so that changes behind it would not be seen: put the "
        "folder itself there, or one of links to its files "
        f"(cp -rs {folder.resolve()} FOLDER), or mount it (mount --bind)"
        for folder in linked_folders(sources)
    ]


def _leaks(checked: Sequence[Checked]) -> list[str]:
    """The same pixels in two splits; within one, a frame may stand in several sub-data sets."""
    first_with: dict[str, Checked] = {}
    problems = []
    for frame in checked:
        if not frame.digest:
            continue
        first = first_with.setdefault(frame.digest, frame)
        if first.split != frame.split:
            files = f"{first.source.image} ({first.split}) and {frame.source.image} ({frame.split})"
            problems.append(f"{files} are the same frame in two splits")
    return list(dict.fromkeys(problems))


def _too_few(checked: Sequence[Checked], settings: PrepareSettings) -> list[str]:
    """Anatomies that are there and cannot be trained."""
    training = Counter(frame.source.anatomy for frame in checked if frame.split == "train")
    found = {frame.source.anatomy for frame in checked}
    problems = []
    for anatomy in dict.fromkeys(settings.anatomies):
        frames = training[anatomy]
        is_there = (settings.root / anatomy).is_dir() or anatomy in found
        if is_there and frames < settings.least_training:
            problems.append(
                f"{anatomy}: {frames or 'no'} training frame{'s' * (frames != 1)}, at least "
                f"{settings.least_training} are needed"
            )
    return problems


def _foreign_maps(checked: Sequence[Checked]) -> list[str]:
    """Complete label maps that show something else than the masks of the same frames."""
    maps = [frame.map for frame in checked if frame.map is not None]
    wrong = [each for each in maps if not each.agrees]
    if len(wrong) <= WRONG * len(maps):
        return []
    return [
        f"{wrong[0].path} and {len(wrong) - 1} more of {len(maps)} label maps show another anatomy "
        "where the masks of their frames show theirs: are the lines of anatomies.txt in the order "
        "of the values?"
    ]
