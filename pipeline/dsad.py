"""Reading a data set in DSAD's layout.

A frame is ``<root>/<anatomy>/<surgery>/imageMM.png``, its mask is ``maskMM.png`` beside it. What
else DSAD keeps there (``weak_labels.csv``, ``anno_1`` .. ``anno_3``, ``multilabel``) is not read
here (:mod:`pipeline.annotations`, :mod:`pipeline.label_maps`). What looks like a frame and cannot
be used is a problem. Everything else that is not used is warned of by name.
"""

import difflib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MtkdError
from pipeline.files import entries, folders, kinds, some, walk
from pipeline.settings import UNLABELLED, Splits
from pipeline.surgeries import same_surgeries, surgery_id, surgery_order

MAPS = "multilabel"
OTHER_FOLDERS = (MAPS, "labelmap")  # beside those of the anatomies

_LABEL = re.compile(r"(?:mask|label)([0-9]+)\.png")
_FILE = re.compile(r"(image|mask)([0-9]+)\.png", re.IGNORECASE)
_LIKE_A_FRAME = re.compile(r"(?:image|img|frame|mask|label)s?[ _.-]*(\d+)\D.*", re.IGNORECASE)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
# What DSAD and complete label maps keep beside frames: read elsewhere.
_BESIDE = re.compile(
    r"weak_labels\.csv|anatomies\.txt|anno_.*|label[0-9]+\.png|SOURCE\.md|sources\.csv",
    re.IGNORECASE,
)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DataError(MtkdError):
    """All problems of a data set, reported together.

    Attributes:
        problems: one line each, naming the file or folder.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        title = [] if len(self.problems) == 1 else [f"{len(self.problems)} problems:"]
        super().__init__("\n  ".join([*title, *self.problems]))


def is_label(path: Path) -> bool:
    """Whether this is a ``maskMM.png`` or ``labelMM.png`` beside or below an ``imageMM.png``."""
    label = _LABEL.fullmatch(path.name)
    return label is not None and any(
        (folder / f"image{label[1]}.png").is_file() for folder in (path.parent, path.parent.parent)
    )


def surgery_names(root: Path) -> dict[str | int, str]:
    """The surgery folders of all anatomies of a data set, also of those that are not used.

    Returns:
        Names by id, in order. Of several names with one id, the last one.
    """
    surgeries = chain.from_iterable(map(folders, folders(root)))
    names = sorted((surgery.name for surgery in surgeries), key=surgery_order)
    return {surgery_id(name): name for name in names}


@dataclass(frozen=True)
class DataSet:
    """A folder of frames with masks, or with label maps.

    Attributes:
        root: the folder.
        name: what its surgeries begin with; empty for the only data set, or the first one.
        rename: from its names of anatomies to ours.
    """

    root: Path
    name: str = ""
    rename: Mapping[str, str] = field(default_factory=dict, hash=False)

    def ours(self, anatomy: str) -> str:
        """What we call one of its anatomies."""
        return self.rename.get(anatomy, anatomy)

    def theirs(self, anatomy: str, names: Iterable[str]) -> list[str]:
        """Those of its names that mean one of our anatomies."""
        return [name for name in names if self.ours(name) == anatomy]


@dataclass(frozen=True)
class Source:
    """One frame of a data set and its mask.

    Attributes:
        anatomy, surgery: folder names; the anatomy is ``UNLABELLED`` for a frame without a mask.
        name: stem of the frame's file, such as ``image03``.
        image, mask: the files.
        value: of the anatomy in ``mask``, if that is a label map; in a mask all above 0 is.
        data_set: where it is from; None for a frame without a mask.
    """

    anatomy: str
    surgery: str
    name: str
    image: Path
    mask: Path | None
    value: int | None = None
    data_set: DataSet | None = None

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
        DataError: the root is missing, is not a folder, or holds no folders.
    """
    _require_folder(root, "data.root", "<anatomy>/<surgery>/imageMM.png")
    names = [path.name for path in folders(root)]
    if not names:
        raise DataError([f"{root} holds no anatomy folders: set data.root to the folder that does"])
    sources: list[Source] = []
    problems = [
        f"data.anatomies: {name} is listed twice" for name, n in Counter(anatomies).items() if n > 1
    ]
    if not anatomies:
        problems.append(f"data.anatomies: names none; there: {', '.join(names)}")
    for anatomy in dict.fromkeys(anatomies):
        if anatomy not in names:
            problems.append(_unknown(root, anatomy, names))
            continue
        anatomy_sources, anatomy_problems = _scan_anatomy(root / anatomy)
        sources += anatomy_sources
        problems += anatomy_problems
    return sources, problems


def _require_folder(root: Path, key: str, content: str) -> None:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError([f"{root} {what}: set {key} to the folder that holds {content}"])


def _unknown(root: Path, anatomy: str, names: Sequence[str]) -> str:
    folder = root / anatomy
    if folder.is_symlink():
        return f"{folder}: is a link to {folder.readlink()}, which is not a folder"
    if normalize("NFC", anatomy) in [normalize("NFC", name) for name in names]:
        return (
            f"data.anatomies: {anatomy} looks like a folder of {root} whose name has other "
            "Unicode characters (as of macOS): copy the folder's name, or rename the folder"
        )
    close = difflib.get_close_matches(anatomy, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"data.anatomies: {anatomy} has no folder in {root}; {hint}there: {', '.join(names)}"


def _scan_anatomy(folder: Path) -> tuple[list[Source], list[str]]:
    paths = entries(folder)
    surgeries = _in_order(path for path in paths if path.is_dir())
    problems = _links_to_nothing(folder, paths) + _outside_surgeries(folder, paths)
    names = [surgery.name for surgery in surgeries]
    problems += [
        f"{folder}: folders {' and '.join(same)} are the same surgery {number}: rename one"
        for number, same in same_surgeries(names)
    ]
    sources: list[Source] = []
    for surgery in surgeries:
        surgery_sources, surgery_problems = _scan_surgery(surgery)
        sources += surgery_sources
        problems += surgery_problems
    return sources, problems


def _in_order(surgeries: Iterable[Path]) -> list[Path]:
    return sorted(surgeries, key=lambda path: surgery_order(path.name))


def _scan_surgery(folder: Path) -> tuple[list[Source], list[str]]:
    if not _is_utf8(folder):
        return [], [f"{folder}: its name is not UTF-8: rename it"]
    paths = entries(folder)
    files, problems = _named_files(paths)
    images = files["image"]
    masks = files["mask"]
    problems += _links_to_nothing(folder, paths)
    problems += _without_partner(images, masks, "its mask mask{}.png is missing")
    problems += _without_partner(masks, images, "its frame image{}.png is missing")
    problems += _misnamed(folder, paths, set(map(int, images.keys() | masks.keys())))
    problems += _nested(folder, paths)
    return _pairs(folder, images, masks), problems


def _without_partner(
    files: Mapping[str, Path], partners: Mapping[str, Path], problem: str
) -> list[str]:
    numbers = sorted(files.keys() - partners.keys())
    return [f"{files[number]}: {problem.format(number)}" for number in numbers]


def _pairs(folder: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[Source]:
    """The frames of a surgery's folder that have a mask, in order, without links to nothing."""
    numbers = sorted(images.keys() & masks.keys(), key=lambda number: (int(number), number))
    return [
        Source(folder.parent.name, folder.name, f"image{n}", images[n], masks[n])
        for n in numbers
        if images[n].is_file() and masks[n].is_file()
    ]


def _named_files(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Files and links ``imageMM.png`` and ``maskMM.png``, and names that clash.

    Returns:
        By kind, then by the digits of their names; and one line per problem.
    """
    files: dict[str, dict[str, Path]] = {"image": {}, "mask": {}}
    problems = []
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match is None or path.is_dir():
            continue
        first = files[match[1].lower()].setdefault(match[2], path)
        if first is not path:
            problems.append(f"{path}: {first.name} has the same name but for its case: remove one")
    return files, problems


def _links_to_nothing(folder: Path, paths: Sequence[Path]) -> list[str]:
    broken = [path for path in paths if path.is_symlink() and not path.exists()]
    if not broken:
        return []
    others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return [
        f"{folder}: {broken[0].name} -> {broken[0].readlink()}{others}: links to nothing; get "
        "their content (datalad get, git annex get, dvc pull), or remove them"
    ]


def _misnamed(folder: Path, paths: Sequence[Path], numbers: set[int]) -> list[str]:
    """Pictures that look like frames or masks by their names, where no frame has that number.

    Args:
        folder: of the surgery.
        paths: what it holds.
        numbers: of the frames and masks that are named as they should be.
    """
    pictures = [path for path in paths if is_picture(path) and not _BESIDE.fullmatch(path.name)]
    names = [path.name for path in pictures if _number_of_misnamed(path) not in (None, *numbers)]
    if names:
        return [
            f"{folder}: {some(names)}: look like frames or masks; name them imageMM.png and "
            "maskMM.png, as PNG files, or move them elsewhere"
        ]
    if pictures and not numbers:
        listed = some([path.name for path in pictures])
        return [
            f"{folder}: holds {listed} and no imageMM.png with maskMM.png: rename these, or move "
            "them elsewhere"
        ]
    return []


def _number_of_misnamed(path: Path) -> int | None:
    """The number of a picture that is named like a frame, but not as frames are named here."""
    match = _LIKE_A_FRAME.fullmatch(path.name)
    return None if match is None or _FILE.fullmatch(path.name) else int(match[1])


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, of whatever format."""
    return path.suffix.lower() in _PICTURES and path.is_file()


def _outside_surgeries(folder: Path, paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths if is_picture(path)]
    return [f"{folder}: {some(names)}: not in a surgery's folder; move into one"] if names else []


def _nested(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Folders in a surgery's folder that hold frames: they would be left out."""
    inner = [path for path in paths if path.is_dir() and not _BESIDE.fullmatch(path.name)]
    names = [path.name for path in inner if _holds_frames(path)]
    if not names:
        return []
    where = "folder" if len(names) == 1 else "folders"
    return [
        f"{folder}: frames in its {where} {some(names)} are not read: move them up into it, or "
        "elsewhere"
    ]


def _holds_frames(folder: Path) -> bool:
    return any(is_picture(file) and not is_label(file) for file in walk(folder))


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
    """What lies in a data set and is neither used nor known to be something else.

    Args:
        root: folder of anatomies. In it, as in the next root, only pictures and archives count.
        anatomies: names of its folders that are used.
        unlabelled_root: folder of surgeries without masks, or None.
        sources: the frames that are used.

    Returns:
        A warning for each kind.
    """
    roots = [root] if unlabelled_root is None else [root, unlabelled_root]
    groups = _groups(root, anatomies, sources)
    surgeries = list(chain.from_iterable(map(folders, [*groups, *roots[1:]])))
    used = set(_files(sources))
    paths = [
        path
        for path in _candidates(roots, groups, surgeries)
        if path not in used and not _BESIDE.fullmatch(path.name)
    ]
    archives = [path for path in paths if is_archive(path)]
    others = [path for path in paths if not is_archive(path)]
    # What looks like a frame must not hide behind other pictures.
    others.sort(key=_looks_like_a_frame, reverse=True)
    warnings = {
        "not used": kinds(others),
        "archives are not read, unpack them or move them elsewhere": kinds(archives),
        "folders of surgeries without a frame": some(_empty(surgeries, used)),
    }
    return [f"{kind}: {listed}" for kind, listed in warnings.items() if listed]


def _groups(root: Path, anatomies: Sequence[str], sources: Sequence[Source]) -> list[Path]:
    """The folders that hold surgeries: of anatomies, or one of label maps."""
    of_anatomies = [root / anatomy for anatomy in anatomies if (root / anatomy).is_dir()]
    used = [source.image.parent.parent for source in sources if source.mask is not None]
    return list(dict.fromkeys([*of_anatomies, *used]))


def _files(sources: Iterable[Source]) -> Iterator[Path]:
    for source in sources:
        yield source.image
        if source.mask is not None:
            yield source.mask


def _candidates(
    roots: Iterable[Path], groups: Iterable[Path], surgeries: Iterable[Path]
) -> Iterator[Path]:
    """Pictures and archives in roots, files beside surgeries, and all that surgeries hold."""
    for root in roots:
        yield from (path for path in entries(root) if is_picture(path) or is_archive(path))
    for group in groups:
        yield from (path for path in entries(group) if not path.is_dir())
    for surgery in surgeries:
        yield from entries(surgery)


def _empty(surgeries: Iterable[Path], used: set[Path]) -> list[Path]:
    return [folder for folder in surgeries if used.isdisjoint(entries(folder))]


def other_anatomies(
    root: Path, anatomies: Sequence[str], unlabelled_root: Path | None
) -> list[str]:
    """A warning of the folders of a data set that are not used."""
    expected = {*anatomies, *OTHER_FOLDERS}
    others = [
        path.name for path in folders(root) if path.name not in expected and path != unlabelled_root
    ]
    if not others:
        return []
    return [f"folders of {root} that are not in data.anatomies are not used: {some(others)}"]


def _looks_like_a_frame(path: Path) -> bool:
    return is_picture(path) and _LIKE_A_FRAME.fullmatch(path.name) is not None


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name."""
    return path.suffix.lower() in _ARCHIVES and path.is_file()


def linked_folders(sources: Sequence[Source]) -> list[Path]:
    """The folders of some frames (of anatomies, surgeries and annotators) that are links."""
    surgeries = list(dict.fromkeys(source.image.parent for source in sources))
    masks = [source for source in sources if source.mask is not None and source.value is None]
    anatomies = {source.image.parent.parent for source in masks}
    annotators = chain.from_iterable(surgery.glob("anno_*") for surgery in surgeries)
    paths = [*anatomies, *surgeries, *annotators]
    return sorted(path for path in paths if path.is_symlink() and path.is_dir())


def scan_unlabelled(root: Path, splits: Splits) -> tuple[list[Source], list[str]]:
    """All frames ``<root>/<surgery>/*.png``, in order, and what is wrong with the folders.

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
    for folder in _in_order(folders(root)):
        surgery_sources, surgery_problems = _scan_unlabelled_surgery(folder, splits)
        sources += surgery_sources
        problems += surgery_problems
    return sources, [f"data.unlabelled_root: {problem}" for problem in problems]


def _scan_unlabelled_surgery(folder: Path, splits: Splits) -> tuple[list[Source], list[str]]:
    paths = entries(folder)
    pictures = [path for path in paths if is_picture(path) and not is_label(path)]
    images = [path for path in pictures if path.suffix.lower() == ".png"]
    others = [path.name for path in pictures if path not in images]
    nested = _nested(folder, paths)
    problems = _not_of_training(folder, splits) + _links_to_nothing(folder, paths)
    if others:
        problems.append(f"{folder}: holds {some(others)}, expected PNG files only")
    problems += nested
    if not pictures and not nested:
        problems.append(f"{folder}: holds no frames, expected PNG files")
    problems += _not_utf8(images)
    return [Source(UNLABELLED, folder.name, path.stem, path, None) for path in images], problems


def _not_of_training(folder: Path, splits: Splits) -> list[str]:
    split = splits.of(folder.name)
    if split == "train":
        return []
    return [
        f"{folder}: surgery {folder.name} is one of data.splits.{split}; only surgeries of "
        "training may be here"
    ]


def _not_utf8(paths: Iterable[Path]) -> list[str]:
    return [f"{path}: its name is not UTF-8: rename it" for path in paths if not _is_utf8(path)]


def read_frame(path: Path) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 RGB.

    Grey, palette and 16-bit files are converted; an alpha channel is dropped.

    Raises:
        DataError: the file is missing, damaged, or not a PNG.
    """
    pixels = _eight_bits(_decode(path))
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def read_mask(path: Path) -> tuple[NDArray[np.bool_], bool]:
    """A mask, and whether it is odd.

    A colour mask is foreground where any colour channel is, except where it is fully transparent:
    some editors keep white under what they erase.

    Returns:
        The mask (H, W) bool, foreground where the file is above 0 as in Kolbinger's code; and
        whether the file holds values between 0 and full.

    Raises:
        DataError: the file is missing, damaged, or not a PNG.
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
    _require_complete_png(path, content)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # of OpenCV, and where there is not enough memory
        raise DataError(
            [f"{path}: cannot be decoded as PNG ({getattr(error, 'err', error)})"]
        ) from error
    if pixels is None:
        raise DataError([f"{path}: cannot be decoded as PNG"])
    return np.asarray(pixels)


def _require_complete_png(path: Path, content: bytes) -> None:
    """Walk the chunks and their checksums.

    OpenCV returns the first rows of a truncated file without an error.
    """
    if not content:
        raise DataError([f"{path}: is empty"])
    if not content.startswith(_SIGNATURE):
        raise DataError([f"{path}: its content is not a PNG, whatever its name says"])
    at = len(_SIGNATURE)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(content):
            break
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise DataError([f"{path}: is damaged (checksum of its {kind.decode('latin1')} chunk)"])
        if kind == b"IEND":
            return
        at = end + 4
    raise DataError([f"{path}: is truncated"])
