"""The page of ``mtkd describe``: tables, what is wrong, and a contact sheet of overlays."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.overlay import draw
from pipeline.deployment.palette import PALETTE, Colour, colours_of
from pipeline.description import examples
from pipeline.dsad import read_frame
from pipeline.prefetch import by_threads
from pipeline.survey import Picture, Survey, read_drawn

# Two thumbnails of 320 pixels beside each other fill a phone. Eleven anatomies are about 1 MB.
SIDE = 320
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
OPACITY = 0.35
SMALL = 0.005  # of a thumbnail: a mask that is easily overlooked
LISTED = 100  # pairs that look alike


@dataclass(frozen=True)
class Thumbnail:
    """A frame with one mask, as a data URL, and what stands below it."""

    url: str
    place: str
    split: str
    area: float


@dataclass(frozen=True)
class Sheet:
    """The thumbnails of an anatomy, and the colour of its masks."""

    anatomy: str
    colour: str
    css: str
    thumbnails: Sequence[Thumbnail]


def description_page(description: Mapping[str, Any], survey: Survey, workers: int = 1) -> str:
    """The HTML of a page that needs no other file.

    Args:
        description: what :func:`pipeline.description.describe` says, with its ``root``.
        survey: the data set itself.
        workers: threads that draw thumbnails.
    """
    template = (files("stages") / "templates" / "description.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "plain": lambda name: name.replace("_", " "),
        "percent": percent,
        "whole": whole,
        "percents": partial(spread, form=percent),
        "wholes": partial(spread, form=whole),
    }
    return environment.from_string(template).render(
        of=description, sheets=contact_sheet(survey, workers), listed_pairs=LISTED
    )


def percent(share: float | None) -> str:
    """A share of 0..1 in percent, with three digits that count; ``-`` for None."""
    return "-" if share is None else f"{100 * share:.3g}"


def whole(value: float | None) -> str:
    """A number without decimals; ``-`` for None."""
    return "-" if value is None else f"{value:.0f}"


def spread(values: Mapping[str, float | None], form: Callable[[float | None], str]) -> str:
    """The extremes of some values, such as ``3.1..40``."""
    if values["least"] is None:
        return "-"
    return f"{form(values['least'])}..{form(values['most'])}"


def contact_sheet(survey: Survey, workers: int = 1) -> list[Sheet]:
    """For each anatomy that has a mask a few frames, from the smallest mask to the largest.

    Raises:
        DataError: a frame or mask cannot be read any more.
    """
    sheets = []
    for anatomy, (name, colour) in colours_of(survey.anatomies).items():

        def thumbnail(picture: Picture, anatomy: str = anatomy, colour: Colour = colour) -> str:
            frame = read_frame(picture.source.image)
            return _url(overlay(frame, read_drawn(picture, anatomy, survey.legends), colour))

        pictures = examples(survey.pictures, anatomy)
        urls = list(by_threads(thumbnail, pictures, workers))
        thumbnails = [
            Thumbnail(url, _place(picture), picture.split, picture.areas[anatomy])
            for url, picture in zip(urls, pictures, strict=True)
        ]
        if thumbnails:
            sheets.append(Sheet(anatomy, name, "rgb({}, {}, {})".format(*colour), thumbnails))
    return sheets


def _place(picture: Picture) -> str:
    """Surgery and name."""
    return f"{picture.surgery}/{picture.source.name}"


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> NDArray[np.uint8]:
    """A small picture of a frame with a mask on it.

    Args:
        frame: (H, W, 3) RGB.
        mask: (H, W).
        colour: of the mask.

    Returns:
        (h, w, 3) RGB; the longer side has ``SIDE`` pixels. A pixel belongs to the mask if any of
        what it stands for does, and a small mask gets a white frame: so that it can be seen.
    """
    height, width = mask.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(frame, size, interpolation=way), np.uint8)
    share = cv2.resize(mask.astype(np.float32), size, interpolation=way)
    shown = np.asarray(share > 0)
    picture = draw(small, shown[None], [colour], OPACITY)
    if 0 < shown.mean() < SMALL:
        left, top, width, height = cv2.boundingRect(shown.view(np.uint8))
        corners = ((left - 4, top - 4), (left + width + 3, top + height + 3))
        cv2.rectangle(picture, *corners, PALETTE["white"], 1)
    return picture


def _url(picture: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], JPEG)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
