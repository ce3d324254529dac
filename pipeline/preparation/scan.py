"""All frames of one data set or of several, under our names of anatomies and surgeries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dsad import OTHER_FOLDERS, DataError, DataSet, Source, scan, surgery_names
from pipeline.files import folders
from pipeline.label_maps import Legend, has_label_maps, legend_of, scan_maps
from pipeline.surgeries import of_set, surgery_id, surgery_order

Names = Mapping[DataSet, Sequence[str]]  # what each data set calls its anatomies


def scan_all(
    data_sets: Sequence[DataSet], anatomies: Sequence[str], named_by: str
) -> tuple[list[Source], dict[DataSet, Legend], list[str]]:
    """All frames of some data sets, in order, and what is wrong with their folders.

    Args:
        data_sets: the first one names the anatomies; the others have some of them, under names that
            may be others.
        anatomies: ours.
        named_by: what names them.

    Returns:
        Frames ordered by data set, anatomy, surgery id and name; the legends of their label maps;
        and one line per problem.

    Raises:
        DataError: a root is missing, is not a folder, or holds no folders.
    """
    legends, problems = _legends(data_sets, anatomies, named_by)
    problems += _same_roots(data_sets)
    names = {each: _names_of(each, legends) for each in data_sets if each in legends}
    sources: list[Source] = []
    for data_set in names:
        wanted = _wanted(data_set, anatomies, names)
        if data_set.name:
            theirs = legends[data_set].listed if has_label_maps(data_set.root) else names[data_set]
            problems += _misnamed(data_set, theirs, anatomies)
        if data_set.name and not wanted:
            problems.append(_without_anatomies(data_set, names[data_set]))
            continue
        found, wrong = _scan(data_set, wanted, names[data_set], legends[data_set], named_by)
        sources += found
        problems += wrong
    return sources, legends, problems


def surgeries_of(data_sets: Sequence[DataSet]) -> dict[str | int, str]:
    """The surgeries of some data sets: names by id, in order."""
    names: list[str] = []
    for data_set in data_sets:
        there = sorted(_surgery_folders(data_set.root), key=surgery_order)
        names += [of_set(data_set.name, name) for name in there]
    return {surgery_id(name): name for name in names}


def _surgery_folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    if has_label_maps(root):
        return [path.name for path in folders(root)]
    return list(surgery_names(root).values())


def _legends(
    data_sets: Sequence[DataSet], anatomies: Sequence[str], named_by: str
) -> tuple[dict[DataSet, Legend], list[str]]:
    legends = {}
    problems: list[str] = []
    for data_set in data_sets:
        try:
            legends[data_set] = legend_of(data_set, anatomies, named_by)
        except DataError as error:
            problems += error.problems
            if not has_label_maps(data_set.root):
                legends[data_set] = Legend((), "", [0])
    return legends, problems


def _names_of(data_set: DataSet, legends: Mapping[DataSet, Legend]) -> list[str]:
    """What the anatomies of a data set are called: by its folders, or by its legend, as we do."""
    if has_label_maps(data_set.root):
        return list(legends[data_set].names)
    if not data_set.root.is_dir():
        return []
    return [path.name for path in folders(data_set.root) if path.name not in OTHER_FOLDERS]


def _misnamed(data_set: DataSet, names: Sequence[str], anatomies: Sequence[str]) -> list[str]:
    """Entries of ``rename`` that mean nothing."""
    key = f"data.others.{data_set.name}.rename"
    unknown = [name for name in data_set.rename.values() if name not in anatomies]
    problems = [f"{key}: {name} is not one of data.anatomies" for name in dict.fromkeys(unknown)]
    absent = [name for name in data_set.rename if name not in names]
    there = ", ".join(names)
    problems += [f"{key}: {name} is not in {data_set.root}; there: {there}" for name in absent]
    return problems


def _same_roots(data_sets: Sequence[DataSet]) -> list[str]:
    """Data sets that are one folder: its test surgeries would train under another name."""
    first: dict[Path, DataSet] = {}
    problems = []
    for data_set in data_sets:
        same = first.setdefault(data_set.root.resolve(), data_set)
        if same is not data_set:
            key = f"data.others.{same.name}.root" if same.name else "data.root"
            problems.append(
                f"data.others.{data_set.name}.root: {data_set.root} is {key}, too: name it once"
            )
    return problems


def _without_anatomies(data_set: DataSet, names: Sequence[str]) -> str:
    key = f"data.others.{data_set.name}.root"
    if not data_set.root.is_dir():
        return f"{key}: {data_set.root} is not a folder"
    return f"{key}: {data_set.root} has none of data.anatomies; there: {', '.join(names)}"


def _wanted(data_set: DataSet, anatomies: Sequence[str], names: Names) -> list[str]:
    """Our anatomies that a data set has; of the first one also those that none has."""
    has = {each: set(map(each.ours, theirs)) for each, theirs in names.items()}
    if data_set.name:
        return [anatomy for anatomy in anatomies if anatomy in has[data_set]]
    others = set().union(*(has[each] for each in names if each is not data_set))
    return [each for each in anatomies if each in has[data_set] or each not in others]


def _scan(
    data_set: DataSet,
    anatomies: Sequence[str],
    names: Sequence[str],
    legend: Legend,
    named_by: str,
) -> tuple[list[Source], list[str]]:
    if has_label_maps(data_set.root):
        return scan_maps(data_set, anatomies, legend, named_by)
    problems: list[str] = []
    groups = [data_set.theirs(each, names) or [each] for each in anatomies]
    for anatomy, group in zip(anatomies, groups, strict=True):
        if len(group) > 1:
            listed = " and ".join(group)
            problems.append(f"{data_set.root}: folders {listed} both mean {anatomy}: join them")
    sources, wrong = scan(data_set.root, [group[0] for group in groups])
    return [_as_ours(source, data_set) for source in sources], problems + wrong


def _as_ours(source: Source, data_set: DataSet) -> Source:
    return replace(
        source,
        anatomy=data_set.ours(source.anatomy),
        surgery=of_set(data_set.name, source.surgery),
        data_set=data_set,
    )
