"""Reading a data set in DSAD's layout: ``<root>/<anatomy>/<surgery>/imageMM.png`` beside ``maskMM.png``.

What else DSAD keeps there (``weak_labels.csv``, ``anno_1`` .. ``anno_3``, ``multilabel``) is not
read here. What looks like a frame and cannot be used is a problem; everything else that is not used
is warned of by name. Surgeries are folders: a frame is split by its surgery's id and never by a
substring of its path.
"""

import difflib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MtkdError
from pipeline.files import entries, folders, kinds, some, walk

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED = "unlabelled"  # stands where a labelled frame names its anatomy
OTHER_FOLDERS = ("multilabel", "labelmap")  # beside those of the anatomies

_LABEL = re.compile(r"(?:mask|label)([0-9]+)\.png")
_FILE = re.compile(r"(image|mask)([0-9]+)\.png", re.IGNORECASE)
_LIKE_A_FRAME = re.compile(r"(?:image|img|frame|mask|label)s?[ _.-]*(\d+)\D.*", re.IGNORECASE)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
# What DSAD and complete label maps keep beside frames: read elsewhere.
_BESIDE = re.compile(r"weak_labels\.csv|anatomies\.txt|anno_.*|label[0-9]+\.png", re.IGNORECASE)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DataError(MtkdError):
    """All problems of a data set, reported together.

    Attributes:
        problems: one line each, naming the file or folder.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = (
            self.problems
            if len(self.problems) == 1
            else (f"{len(self.problems)} problems:", *self.problems)
        )
        super().__init__("\n  ".join(lines))


def is_label(path: Path) -> bool:
    """Whether this is a ``maskMM.png`` or ``labelMM.png`` beside or below an ``imageMM.png``."""
    label = _LABEL.fullmatch(path.name)
    return label is not None and any(
        (folder / f"image{label[1]}.png").is_file() for folder in (path.parent, path.parent.parent)
    )


def surgery_id(surgery: str | int) -> str | int:
    """What a surgery's folder is compared by: a number where the name is digits, so that 3 means 03; else the name."""
    name = normalize("NFC", str(surgery))
    return int(name) if re.fullmatch("[0-9]+", name) else name


def surgery_names(root: Path) -> dict[str | int, str]:
    """By id, the surgery folders of all anatomies of a data set, also of those that are not used; in order."""
    names = sorted(
        (surgery.name for anatomy in folders(root) for surgery in folders(anatomy)), key=_order
    )
    return {surgery_id(name): name for name in names}


@dataclass(frozen=True)
class Splits:
    """Surgery ids of validation and test; all other surgeries train."""

    val: tuple[str | int, ...]
    test: tuple[str | int, ...]

    def of(self, surgery: str) -> Split:
        """The split of a surgery's folder."""
        if surgery_id(surgery) in map(surgery_id, self.test):
            return "test"
        return "val" if surgery_id(surgery) in map(surgery_id, self.val) else "train"


@dataclass(frozen=True)
class Source:
    """One frame of a data set and its mask.

    Attributes:
        anatomy, surgery: folder names; the anatomy is ``UNLABELLED`` for a frame without a mask.
        name: stem of the frame's file, such as ``image03``.
        image, mask: the files.
    """

    anatomy: str
    surgery: str
    name: str
    image: Path
    mask: Path | None

    @property
    def id(self) -> str:
        """Such as ``colon/04/image03``."""
        return f"{self.anatomy}/{self.surgery}/{self.name}"


def scan(root: Path, anatomies: Sequence[str]) -> tuple[list[Source], list[str]]:
    """All frames of some anatomies, in order, and what is wrong with the folders.

    Args:
        root: folder of anatomies.
        anatomies: names of its folders.

    Returns:
        Frames that have a mask, ordered by anatomy as given, surgery id and name; and one line per
        problem.

    Raises:
        DataError: the root is missing, no folder, or holds none.
    """
    _require_folder(root, "data.root", "<anatomy>/<surgery>/imageMM.png")
    there = [path.name for path in folders(root)]
    if not there:
        raise DataError([f"{root} holds no anatomy folders: set data.root to the folder that does"])
    sources: list[Source] = []
    problems = [
        f"data.anatomies: {name} is listed twice" for name, n in Counter(anatomies).items() if n > 1
    ]
    if not anatomies:
        problems.append(f"data.anatomies: names none; there: {', '.join(there)}")
    for anatomy in dict.fromkeys(anatomies):
        if anatomy not in there:
            problems.append(_unknown(root, anatomy, there))
            continue
        in_folder, wrong = _scan_anatomy(root / anatomy)
        sources += in_folder
        problems += wrong
    return sources, problems


def _require_folder(root: Path, key: str, content: str) -> None:
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataError([f"{root} {what}: set {key} to the folder that holds {content}"])


def _unknown(root: Path, anatomy: str, there: list[str]) -> str:
    if (root / anatomy).is_symlink():
        return f"{root / anatomy}: is a link to {(root / anatomy).readlink()}, where there is no folder"
    same = [name for name in there if normalize("NFC", name) == normalize("NFC", anatomy)]
    if same:
        return (
            f"data.anatomies: {anatomy} looks like a folder of {root} whose name has other "
            "Unicode characters (as of "
            "macOS): copy the folder's name, or rename the folder"
        )
    close = difflib.get_close_matches(anatomy, there, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"data.anatomies: {anatomy} has no folder in {root}; {hint}there: {', '.join(there)}"


def _scan_anatomy(folder: Path) -> tuple[list[Source], list[str]]:
    sources: list[Source] = []
    paths = entries(folder)
    surgeries = sorted(
        (path for path in paths if path.is_dir()), key=lambda path: _order(path.name)
    )
    problems = _links_to_nothing(folder, paths) + _outside_surgeries(folder, paths)
    for number, names in _same_number(surgeries):
        problems.append(
            f"{folder}: folders {' and '.join(names)} are the same surgery {number}: rename one"
        )
    for surgery in surgeries:
        in_folder, wrong = _scan_surgery(surgery)
        sources += in_folder
        problems += wrong
    return sources, problems


def _order(surgery: str) -> tuple[int, int, str]:
    """Numbers first, by value; then names."""
    number = surgery_id(surgery)
    return (0, number, surgery) if isinstance(number, int) else (1, 0, surgery)


def _same_number(surgeries: Sequence[Path]) -> Iterator[tuple[str | int, list[str]]]:
    ids = Counter(surgery_id(p.name) for p in surgeries)
    for number, times in ids.items():
        if times > 1:
            yield number, [p.name for p in surgeries if surgery_id(p.name) == number]


def _scan_surgery(folder: Path) -> tuple[list[Source], list[str]]:
    if not _is_utf8(folder):
        return [], [f"{folder}: its name is not UTF-8: rename it"]
    paths = entries(folder)
    files, problems = _named_files(paths)
    images, masks = files["image"], files["mask"]
    problems += _links_to_nothing(folder, paths)
    problems += [
        f"{images[n]}: its mask mask{n}.png is missing"
        for n in sorted(images.keys() - masks.keys())
    ]
    problems += [
        f"{masks[n]}: its frame image{n}.png is missing"
        for n in sorted(masks.keys() - images.keys())
    ]
    problems += _misnamed(folder, paths, {int(n) for n in images.keys() | masks.keys()})
    problems += _nested(folder, paths)
    both = sorted(images.keys() & masks.keys(), key=lambda n: (int(n), n))
    anatomy, surgery = folder.parent.name, folder.name
    whole = [n for n in both if images[n].is_file() and masks[n].is_file()]
    return [Source(anatomy, surgery, f"image{n}", images[n], masks[n]) for n in whole], problems


def _named_files(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Files and links ``imageMM.png`` and ``maskMM.png``, by kind and the digits of their names; and what clashes."""
    files: dict[str, dict[str, Path]] = {"image": {}, "mask": {}}
    problems = []
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match is None or path.is_dir():
            continue
        other = files[match[1].lower()].setdefault(match[2], path)
        if other is not path:
            problems.append(f"{path}: {other.name} has the same name but for its case: remove one")
    return files, problems


def _links_to_nothing(folder: Path, paths: Sequence[Path]) -> list[str]:
    broken = [path for path in paths if path.is_symlink() and not path.exists()]
    if not broken:
        return []
    others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return [
        f"{folder}: {broken[0].name} -> {broken[0].readlink()}{others}: links to nothing; get "
        "their content (datalad "
        "get, git annex get, dvc pull), or remove them"
    ]


def _misnamed(folder: Path, paths: Sequence[Path], numbers: set[int]) -> list[str]:
    """Pictures that look like frames or masks by their names, and whose frames are not here under the right names."""
    pictures = [path for path in paths if _is_picture(path) and not _BESIDE.fullmatch(path.name)]
    names = [path.name for path in pictures if _number_of_misnamed(path) not in (None, *numbers)]
    if names:
        return [
            f"{folder}: {some(names)}: look like frames or masks; name them imageMM.png and "
            "maskMM.png, as PNG files, "
            "or move them elsewhere"
        ]
    if pictures and not numbers:
        these = some([path.name for path in pictures])
        return [
            f"{folder}: holds {these} and no imageMM.png with maskMM.png: rename these, or move "
            "them elsewhere"
        ]
    return []


def _number_of_misnamed(path: Path) -> int | None:
    """The number of a picture that is named like a frame, but not as frames are named here."""
    match = _LIKE_A_FRAME.fullmatch(path.name)
    return None if match is None or _FILE.fullmatch(path.name) else int(match[1])


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES and path.is_file()


def _outside_surgeries(folder: Path, paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths if _is_picture(path)]
    return [f"{folder}: {some(names)}: not in a surgery's folder; move into one"] if names else []


def _nested(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Folders in a surgery's folder that hold frames: they would be left out."""
    inner = [path for path in paths if path.is_dir() and not _BESIDE.fullmatch(path.name)]
    names = [
        path.name
        for path in inner
        if any(_is_picture(file) and not is_label(file) for file in walk(path))
    ]
    if not names:
        return []
    where = "folder" if len(names) == 1 else "folders"
    return [
        f"{folder}: frames in its {where} {some(names)} are not read: move them up into it, or "
        "elsewhere"
    ]


def _is_utf8(path: Path) -> bool:
    """Whether a name can be written to a file; on Linux it may be any bytes."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unused(
    root: Path, anatomies: Sequence[str], unlabelled_root: Path | None, sources: Sequence[Source]
) -> list[str]:
    """What lies in a data set and is neither used nor known to be something else, a warning for each kind.

    Args:
        root: folder of anatomies. In it, as in the next root, only pictures and archives count.
        anatomies: names of its folders that are used.
        unlabelled_root: folder of surgeries without masks, or None.
        sources: the frames that are used.
    """
    roots = [root] if unlabelled_root is None else [root, unlabelled_root]
    groups = [root / anatomy for anatomy in anatomies]
    used = {path for source in sources for path in (source.image, source.mask)}
    surgeries = [surgery for group in (*groups, *roots[1:]) for surgery in folders(group)]
    beside = [
        file for place in roots for file in entries(place) if _is_picture(file) or _is_archive(file)
    ]
    beside += [file for group in groups for file in entries(group) if not file.is_dir()]
    beside += [path for surgery in surgeries for path in entries(surgery)]
    left = [path for path in beside if path not in used and not _BESIDE.fullmatch(path.name)]
    archives = [path for path in left if _is_archive(path)]
    others = [path for path in left if not _is_archive(path)]
    others.sort(
        key=_looks_like_a_frame, reverse=True
    )  # what does must not hide behind other pictures
    empty = [folder for folder in surgeries if not any(path in used for path in entries(folder))]
    warnings = {
        "not used": kinds(others),
        "archives are not read, unpack them or move them elsewhere": kinds(archives),
        "folders of surgeries without a frame": some(empty),
    }
    return [f"{what}: {which}" for what, which in warnings.items() if which]


def other_anatomies(
    root: Path, anatomies: Sequence[str], unlabelled_root: Path | None
) -> list[str]:
    """A warning of the folders of a data set that are not used."""
    known = {*anatomies, *OTHER_FOLDERS}
    others = [
        path.name for path in folders(root) if path.name not in known and path != unlabelled_root
    ]
    return (
        [f"folders of {root} that are not in data.anatomies are not used: {some(others)}"]
        if others
        else []
    )


def _looks_like_a_frame(path: Path) -> bool:
    return _is_picture(path) and _LIKE_A_FRAME.fullmatch(path.name) is not None


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in _ARCHIVES and path.is_file()


def linked_folders(sources: Sequence[Source]) -> list[Path]:
    """The folders of surgeries and anatomies (and annotators in them) of some frames that are links."""
    surgeries = list(dict.fromkeys(source.image.parent for source in sources))
    labelled = {source.image.parent.parent for source in sources if source.mask is not None}
    annotators = [path for surgery in surgeries for path in surgery.glob("anno_*")]
    return sorted(
        path for path in (*labelled, *surgeries, *annotators) if path.is_symlink() and path.is_dir()
    )


def scan_unlabelled(root: Path, splits: Splits) -> tuple[list[Source], list[str]]:
    """All frames of a folder ``<root>/<surgery>/*.png``, in order, and what is wrong with the folders.

    Masks beside them are passed over.

    Args:
        root: folder of surgeries.
        splits: only surgeries of training may be here: frames of the others would be learnt from.

    Raises:
        DataError: the root is not a folder.
    """
    _require_folder(root, "data.unlabelled_root", "<surgery>/*.png")
    paths = entries(root)
    sources: list[Source] = []
    problems = _links_to_nothing(root, paths) + _outside_surgeries(root, paths)
    for folder in sorted(folders(root), key=lambda path: _order(path.name)):
        in_folder, wrong = _scan_unlabelled_surgery(folder, splits)
        sources += in_folder
        problems += wrong
    return sources, [f"data.unlabelled_root: {problem}" for problem in problems]


def _scan_unlabelled_surgery(folder: Path, splits: Splits) -> tuple[list[Source], list[str]]:
    split = splits.of(folder.name)
    paths = entries(folder)
    pictures = [path for path in paths if _is_picture(path) and not is_label(path)]
    images = [path for path in pictures if path.suffix.lower() == ".png"]
    others = [path.name for path in pictures if path not in images]
    nested = _nested(folder, paths)
    problems = []
    if split != "train":
        problems.append(
            f"{folder}: surgery {folder.name} is one of data.splits.{split}; only others may teach"
        )
    problems += _links_to_nothing(folder, paths)
    if others:
        problems.append(f"{folder}: holds {some(others)}, expected PNG files only")
    problems += nested
    if not images and not others and not nested:
        problems.append(f"{folder}: holds no frames, expected PNG files")
    problems += [
        f"{path}: its name is not UTF-8: rename it" for path in images if not _is_utf8(path)
    ]
    return [Source(UNLABELLED, folder.name, path.stem, path, None) for path in images], problems


def read_frame(path: Path) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 RGB; grey, palette and 16-bit files are converted, an alpha channel is dropped.

    Raises:
        DataError: the file is no whole PNG.
    """
    pixels = _eight_bits(_decode(path))
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def read_mask(path: Path) -> tuple[NDArray[np.bool_], bool]:
    """A mask (H, W) bool: foreground above 0 as in Kolbinger's code; and whether it holds values between 0 and full.

    A colour mask is foreground where any colour channel is, except where it is fully transparent:
    some editors keep white under what they erase.

    Raises:
        DataError: the file is no whole PNG.
    """
    pixels = _decode(path)
    full = np.iinfo(pixels.dtype).max
    if pixels.ndim == 3:
        visible = pixels[..., 3:].all(axis=2)  # True of a file without alpha
        pixels = pixels[..., :3].max(axis=2) * visible
    return pixels > 0, bool(((pixels != 0) & (pixels != full)).any())


def _eight_bits(pixels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels.astype(np.uint8, copy=False)


def _decode(path: Path) -> NDArray[np.integer[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror})"]) from error
    _require_whole_png(path, content)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # of OpenCV, and where there is not enough memory
        raise DataError(
            [f"{path}: cannot be decoded as PNG ({getattr(error, 'err', error)})"]
        ) from error
    if pixels is None:
        raise DataError([f"{path}: cannot be decoded as PNG"])
    return np.asarray(pixels)


def _require_whole_png(path: Path, content: bytes) -> None:
    """Walk the chunks and their checksums: OpenCV returns a truncated file's first rows without a word."""
    if not content:
        raise DataError([f"{path}: is empty"])
    if not content.startswith(_SIGNATURE):
        raise DataError([f"{path}: its content is no PNG, whatever its name says"])
    at = len(_SIGNATURE)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind, end = content[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(content):
            break
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise DataError([f"{path}: is damaged (checksum of its {kind.decode('latin1')} chunk)"])
        if kind == b"IEND":
            return
        at = end + 4
    raise DataError([f"{path}: is truncated"])
