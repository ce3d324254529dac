"""``mtkd describe``: what is in a data set, before anything is trained.

A data set with problems is described, too. A folder needs neither params.yaml nor DVC.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.annotations import anatomies_file
from pipeline.description import describe
from pipeline.dsad import OTHER_FOLDERS, DataSet
from pipeline.errors import MtkdError
from pipeline.files import folders, require_writable, some, write_atomically, write_json
from pipeline.label_maps import has_label_maps, legend_of
from pipeline.perceptual_hash import BITS
from pipeline.preparation.settings import PrepareSettings
from pipeline.settings import UNLABELLED, Splits
from pipeline.survey import survey
from stages.reporting.description_page import description_page, percent, spread, whole
from stages.shared.console import console, counted, progress, say
from stages.shared.project import Places, Project, load_project

SIZE = (256, 320)  # where known pixels of a folder are counted, for which there is no image_size
WIDTH = 80  # columns of a terminal
LISTED = 5  # problems, warnings and duplicates that are printed; the page has all of them


def run(places: Places, folder: Path | None, output: Path, workers: int) -> None:
    """Describe the data set of params.yaml, or that of a folder.

    Args:
        places: of the project.
        folder: in DSAD's layout, or of complete label maps: ``<surgery>/imageMM.png`` and
            ``labelMM.png``; None for the data set of params.yaml.
        output: folder for describe.json and describe.html.
        workers: threads that read.

    Raises:
        MtkdError: the data set is missing or holds nothing to describe, or the output cannot be
            written.
    """
    require_writable(output)
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            project = load_project(places.root)
            about = _about(project)
            settings = project.prepare_settings
        else:
            about = {"root": str(folder)}
            settings = _settings_of(folder)
        with progress("frames read") as bar:
            surveyed = survey(settings, Path(scratch), workers, bar)
    description = about | describe(surveyed)
    page = description_page(description, surveyed, workers)
    write_json(output / "describe.json", description)
    # On Linux a file's name may be any bytes.
    write_atomically(output / "describe.html", page.encode(errors="backslashreplace"))
    _print(description)
    say(f"-> {output / 'describe.json'}, {output / 'describe.html'}")


def _about(project: Project) -> dict[str, Any]:
    """What params.yaml says of the data set."""
    data = project.params.data
    return {
        "root": data.root,
        "others": {name: each.root for name, each in data.others.items()},
        "unlabelled_root": data.unlabelled_root,
        "image_size": list(data.image_size),
        "val": list(data.splits.val),
        "test": list(data.splits.test),
    }


def _settings_of(root: Path) -> PrepareSettings:
    """A data set of which only the folder is known.

    Raises:
        MtkdError: it is not a folder, or does not say what its anatomies are.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise MtkdError(f"{root} {problem}: name a folder of frames")
    unlabelled = root / UNLABELLED
    return PrepareSettings(
        root,
        _anatomies_of(root),
        Splits(val=[], test=[]),
        SIZE,
        unlabelled_root=unlabelled if unlabelled.is_dir() else None,
        least_training=0,
    )


def _anatomies_of(root: Path) -> list[str]:
    """What the label maps show, or the folders that hold folders: of surgeries, one hopes."""
    if has_label_maps(root):
        if anatomies_file(root) is None:
            raise MtkdError(
                f"{root} holds label maps and no anatomies.txt: write one whose i-th line names "
                "the anatomy of the value i"
            )
        return [name for name in legend_of(DataSet(root), ()).names if name]
    expected = (*OTHER_FOLDERS, UNLABELLED)
    anatomies = [path.name for path in folders(root) if path.name not in expected and folders(path)]
    if not anatomies:
        raise MtkdError(
            f"{root} holds neither <anatomy>/<surgery>/imageMM.png with maskMM.png nor "
            "<surgery>/imageMM.png with labelMM.png"
        )
    return anatomies


def _print(description: Mapping[str, Any]) -> None:
    """A table of each split, and what else a user should know, in 80 columns."""
    for split, of in description["splits"].items():
        _print_split(split, of)
    if any(of["anatomies"] for of in description["splits"].values()):
        say("area, known: % of a frame; area is that of masks that are not empty.")
        say("elsewhere: frames without such a mask that show the anatomy / do not / may.")
        say("known: pixels that have a target for the anatomy's decoder.\n")
    frames = counted(description["frames"], "frame")
    surgeries = _surgeries(description["surgery_count"])
    masks = counted(description["masks"], "mask")
    say(f"{description['root']}: {frames} of {surgeries}, {masks}")
    for name, of in description["data_sets"].items():
        shown = {each.replace("_", " "): n for each, n in of["anatomies"].items() if n}
        anatomies = ", ".join(f"{each} {number}" for each, number in shown.items())
        of_surgeries = _surgeries(of["surgery_count"])
        say(f"  {name}: {counted(of['frames'], 'frame')} of {of_surgeries}; shown: {anatomies}")
    duplicates = description["duplicates"]
    _list("group", "of frames with the same pixels", list(map(_exact, duplicates["exact"])))
    near = list(map(_near, duplicates["near"]))
    _list("pair", "of frames that look alike", near, duplicates["near_pairs"])
    _list("warning", "", description["warnings"])
    _list("problem", "to solve before training", description["problems"])


def _surgeries(number: int) -> str:
    return f"{number} surger{'y' if number == 1 else 'ies'}"


def _print_split(split: str, of: Mapping[str, Any]) -> None:
    title = f"{split}: {counted(of['frames'], 'frame')}, {_surgeries(of['surgeries'])}"
    say(title)
    if of["anatomies"]:
        console.print(_table(of["anatomies"]), width=WIDTH, soft_wrap=False)
    sizes = [f"{size} ({number})" for size, number in of["sizes"].items()]
    brightness = of["brightness"]
    black = f"; {of['nearly_black']} nearly black" if of["nearly_black"] else ""
    say(f"  sizes {some(sizes)}")
    say(f"  brightness {whole(brightness['median'])} of 255, {spread(brightness, whole)}{black}\n")


def _table(anatomies: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("anatomy", max_width=19)
    for column in ("frames", "surg.", "empty", "area", "least..most", "elsewhere", "known"):
        table.add_column(column, justify="right")
    for name, row in anatomies.items():
        table.add_row(
            name.replace("_", " "),
            str(row["frames"]),
            str(row["surgeries"]),
            str(row["empty"]),
            percent(row["area"]["median"]),
            spread(row["area"], percent),
            "/".join(map(str, row["elsewhere"].values())),
            percent(row["known"]["anatomy"] + row["known"]["background"]),
        )
    return table


def _exact(group: Mapping[str, Any]) -> str:
    return f"in {group['where']}: {some(group['frames'])}"


def _near(pair: Mapping[str, Any]) -> str:
    first, second = pair["frames"]
    return f"{first} and {second}, {pair['distance']} of {BITS} bits"


def _list(noun: str, what: str, lines: Sequence[str], number: int | None = None) -> None:
    """The first of some lines, below how many there are."""
    if not lines:
        return
    number = len(lines) if number is None else number
    say(f"{counted(number, noun)} {what}".rstrip() + ":")
    for line in lines[:LISTED]:
        first, *rest = line.splitlines()
        say(f"  {first}{' ...' if rest else ''}")
    if number > LISTED:
        say(f"  and {number - LISTED} more")
