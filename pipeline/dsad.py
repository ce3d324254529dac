"""Reading a data set in DSAD's layout: ``<root>/<anatomy>/<surgery>/imageMM.png`` beside ``maskMM.png``.

What else lies there (``weak_labels.csv``, ``anno_1`` .. ``anno_3``, ``multilabel``) is passed over. Surgeries are
folders: a frame is split by its surgery's id and never by a substring of its path.
"""

import difflib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MtkdError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED = "unlabelled"  # stands where a labelled frame names its anatomy

_LABEL = re.compile(r"(?:mask|label)(\d+)\.png")
_FILE = re.compile(r"(image|mask)(\d+)\.png", re.IGNORECASE)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DataError(MtkdError):
    """All problems of a data set, reported together.

    Attributes:
        problems: one line each, naming the file or folder.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = self.problems if len(self.problems) == 1 else (f"{len(self.problems)} problems:", *self.problems)
        super().__init__("\n  ".join(lines))


def is_label(path: Path) -> bool:
    """Whether this is a ``maskMM.png`` or ``labelMM.png`` beside or below an ``imageMM.png``."""
    label = _LABEL.fullmatch(path.name)
    return label is not None and any(
        (folder / f"image{label[1]}.png").is_file() for folder in (path.parent, path.parent.parent)
    )


def surgery_id(surgery: str | int) -> str | int:
    """Ids compare as integers where they are digits: YAML turns 03 into 3."""
    return int(surgery) if str(surgery).isdecimal() else str(surgery)


def surgery_ids(root: Path) -> set[str | int]:
    """Ids of the surgery folders of all anatomies of a data set, also of those that are not used."""
    return {surgery_id(p.name) for p in root.glob("*/*") if p.is_dir()}


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
        Frames that have a mask, ordered by anatomy as given, surgery id and name; and one line per problem.

    Raises:
        DataError: the root is missing, no folder, or holds none.
    """
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataError([f"{root} {what}: set data.root to the folder that holds <anatomy>/<surgery>/imageMM.png"])
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError([f"{root} holds no anatomy folders: set data.root to the folder that does"])
    sources: list[Source] = []
    problems = [f"data.anatomies: {name} is listed twice" for name, n in Counter(anatomies).items() if n > 1]
    if not anatomies:
        problems.append(f"data.anatomies: names none; there: {', '.join(folders)}")
    for anatomy in dict.fromkeys(anatomies):
        if anatomy not in folders:
            problems.append(_unknown(root, anatomy, folders))
            continue
        found, wrong = _scan_anatomy(root / anatomy)
        sources += found
        problems += wrong
    return sources, problems


def _unknown(root: Path, anatomy: str, folders: list[str]) -> str:
    close = difflib.get_close_matches(anatomy, folders, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"data.anatomies: {anatomy} has no folder in {root}; {hint}there: {', '.join(folders)}"


def _scan_anatomy(folder: Path) -> tuple[list[Source], list[str]]:
    surgeries = sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")),
        key=lambda p: _order(p.name),
    )
    sources: list[Source] = []
    problems = []
    for number, names in _same_number(surgeries):
        problems.append(f"{folder}: folders {' and '.join(names)} are the same surgery {number}: rename one")
    for surgery in surgeries:
        found, wrong = _scan_surgery(surgery)
        sources += found
        problems += wrong
    return sources, problems


def _order(surgery: str) -> tuple[int, int, str]:
    """Numbers first, by value; then names."""
    return (0, int(surgery), surgery) if surgery.isdecimal() else (1, 0, surgery)


def _same_number(surgeries: Sequence[Path]) -> Iterator[tuple[str | int, list[str]]]:
    ids = Counter(surgery_id(p.name) for p in surgeries)
    for number, times in ids.items():
        if times > 1:
            yield number, [p.name for p in surgeries if surgery_id(p.name) == number]


def _scan_surgery(folder: Path) -> tuple[list[Source], list[str]]:
    files: dict[str, dict[str, Path]] = {"image": {}, "mask": {}}
    problems = []
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match and path.is_file():
            other = files[match[1].lower()].setdefault(match[2], path)
            if other is not path:
                problems.append(f"{path}: {other.name} has the same name but for its case: remove one")
    images, masks = files["image"], files["mask"]
    problems += [f"{images[n]}: its mask mask{n}.png is missing" for n in sorted(images.keys() - masks.keys())]
    problems += [f"{masks[n]}: its frame image{n}.png is missing" for n in sorted(masks.keys() - images.keys())]
    both = sorted(images.keys() & masks.keys(), key=lambda n: (int(n), n))
    anatomy, surgery = folder.parent.name, folder.name
    return [Source(anatomy, surgery, f"image{n}", images[n], masks[n]) for n in both], problems


def scan_unlabelled(root: Path, splits: Splits) -> tuple[list[Source], list[str]]:
    """All frames of a folder ``<root>/<surgery>/*.png``, in order, and what is wrong with the folders.

    Masks beside them are passed over.

    Args:
        root: folder of surgeries.
        splits: only surgeries of training may be here: frames of the others would be learnt from.

    Raises:
        DataError: the root is no folder.
    """
    if not root.is_dir():
        raise DataError([f"{root} is no folder: set data.unlabelled_root to the one that holds <surgery>/*.png"])
    sources: list[Source] = []
    problems = [f"{path}: lies in no surgery's folder" for path in sorted(root.glob("*.png"))]
    for folder in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: _order(p.name)):
        split = splits.of(folder.name)
        if split != "train":
            problems.append(f"{folder}: surgery {folder.name} is one of data.splits.{split}; only others may teach")
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".png" and not is_label(p))
        others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".bmp", ".tif"))
        if others or not images:
            problems.append(f"{folder}: holds {others[0] if others else 'no frames'}, expected PNG files only")
        sources += [Source(UNLABELLED, folder.name, path.stem, path, None) for path in images]
    return sources, problems


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

    A colour mask is foreground where any colour channel is, except where it is fully transparent: some editors keep
    white under what they erase.

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
    except cv2.error as error:
        raise DataError([f"{path}: cannot be decoded as PNG ({error.err})"]) from error
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
