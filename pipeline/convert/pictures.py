"""Frames and label images of others: any mode of PNG, JPEG, and cameras that were turned."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.dsad import DataError, read_frame, read_mask

ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Size = tuple[int, int]


def frame_of(path: Path, size: Size) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 RGB, as large as its labels.

    Args:
        path: PNG, JPEG or what else Pillow reads.
        size: (H, W) of the labels. A picture with an EXIF orientation is turned if only that gives
            this size.

    Raises:
        DataError: it is missing, damaged, of another size, or turned so that its labels may belong
            to either way.
    """
    content = _read(path)
    if path.suffix.lower() == ".png":
        return _fitting(read_frame(path), content, str(path), size)
    return decoded_frame(content, str(path), size)


def decoded_frame(content: bytes, name: str, size: Size) -> NDArray[np.uint8]:
    """The same of a file's content; ``name`` is for errors."""
    with _opened(content, name) as picture:
        mode = picture.mode
        if mode.startswith(("I", "F")):
            raise DataError([f"{name}: is a {mode} picture, expected 8 bits per channel"])
        pixels = np.asarray(picture.convert("RGB"), np.uint8)
    return _fitting(pixels, content, name, size)


def _fitting(pixels: NDArray[np.uint8], content: bytes, name: str, size: Size) -> NDArray[np.uint8]:
    """The pixels as large as their labels, turned as EXIF says if that is needed."""
    orientation = orientation_of(content)
    turned = _turned(pixels, orientation)
    fit = [each for each in (pixels, turned) if each.shape[:2] == size]
    if not fit:
        sizes = f"{pixels.shape[1]}x{pixels.shape[0]} and {size[1]}x{size[0]}"
        raise DataError([f"{name}: frame and labels have different sizes, {sizes}"])
    if len(fit) == 2 and orientation != 1:
        raise DataError(
            [
                f"{name}: has the EXIF orientation {orientation}, and its labels may belong to "
                "either way: turn its pixels and remove the orientation"
            ]
        )
    return fit[0]


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def orientation_of(content: bytes) -> int:
    """The EXIF orientation of a picture's file, 1 if it has none."""
    with _opened(content, "picture") as picture:
        orientation = picture.getexif().get(ORIENTATION, 1)
    return orientation if orientation in _TURNS else 1


def values_of(path: Path) -> NDArray[np.int64]:
    """The values (H, W) of a label image; of a palette image these are its indices.

    Raises:
        DataError: it is missing, damaged, in colour, partly transparent, or turned by EXIF.
    """
    content = _read(path)
    if path.suffix.lower() == ".png":
        read_mask(path)  # refuses what is damaged
    return decoded_values(content, str(path))


def decoded_values(content: bytes, name: str) -> NDArray[np.int64]:
    """The same of a file's content; ``name`` is for errors."""
    with _opened(content, name) as picture:
        mode = picture.mode
        pixels = np.asarray(picture, np.int64)
    _require_upright(content, name)
    if mode in ("LA", "RGBA"):
        pixels = _opaque(pixels, name)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DataError([f"{name}: is a colour picture, expected one value per pixel"])
        pixels = pixels[..., 0]
    return pixels


def colours_of(path: Path) -> NDArray[np.uint8]:
    """The colours (H, W, 3) of a label image; those of a palette are looked up.

    Raises:
        DataError: as of :func:`values_of`, but for colours.
    """
    content = _read(path)
    if path.suffix.lower() == ".png":
        read_mask(path)
    with _opened(content, str(path)) as picture:
        pixels = np.asarray(picture.convert("RGBA"), np.int64)
    _require_upright(content, str(path))
    return _opaque(pixels, str(path)).astype(np.uint8)


def greys_of(path: Path) -> NDArray[np.uint8]:
    """The grey values (H, W) of a label image; those of a palette are looked up.

    Raises:
        DataError: as of :func:`values_of`.
    """
    colours = colours_of(path)
    if (colours != colours[..., :1]).any():
        raise DataError([f"{path}: is a colour picture, expected one value per pixel"])
    return colours[..., 0]


def _opaque(pixels: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """The pixels without their alpha channel."""
    if (pixels[..., -1] != 255).any():
        raise DataError([f"{name}: is partly transparent: save it without an alpha channel"])
    return pixels[..., :-1]


def _require_upright(content: bytes, name: str) -> None:
    orientation = orientation_of(content)
    if orientation != 1:
        raise DataError(
            [
                f"{name}: is a label image with the EXIF orientation {orientation}: turn its "
                "pixels and remove the orientation"
            ]
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror})"]) from None


def _opened(content: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(BytesIO(content))
        picture.load()
    except Exception as error:  # Pillow's decoders raise anything
        reason = " ".join(str(error).split()).split("<_io")[0]
        raise DataError([f"{name}: cannot be decoded as a picture ({reason})"]) from None
    return picture
