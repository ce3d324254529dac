"""Contact sheet of a phantom: frames with their one label beside them, or with all labels.

    python docs/scripts/make_phantom_sheet.py data/phantom docs/phantom.jpg

Complete label maps are rendered anew from the phantom's seed and difficulty (params.yaml), since
the data set that the pipeline reads holds partial labels only.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.dsad import read_frame, read_mask
from pipeline.phantom import render
from pipeline.phantom.patient import ANATOMIES

ROOT = Path(__file__).parents[2]
ROWS = 4
COLUMNS = 6
CELL = (192, 240)
# Wong's palette and three more, RGB; the order is that of ANATOMIES.
LABEL_COLOURS = np.array(
    [
        (0, 0, 0), (230, 159, 0), (86, 180, 233), (255, 40, 40), (90, 80, 255), (170, 80, 20),
        (240, 228, 66), (0, 158, 115), (150, 0, 170), (225, 130, 180), (255, 255, 255),
        (0, 255, 130),
    ],
    np.uint8,
)  # fmt: skip


def tint(frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame with each label's colour over it and a line around it."""
    tinted = (0.6 * frame + 0.4 * LABEL_COLOURS[labels]).astype(np.uint8)
    picture = np.where(labels[..., None] > 0, tinted, frame)
    for i in np.unique(labels[labels > 0]):
        outlines, _ = cv2.findContours(
            (labels == i).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, outlines, -1, LABEL_COLOURS[i].tolist(), 1, cv2.LINE_AA)
    return picture


def caption(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A picture at the cell's size with a line of text below it."""
    strip = np.full((16, CELL[1], 3), 24, np.uint8)
    cv2.putText(
        strip, text, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.37, (235, 235, 235), 1, cv2.LINE_AA
    )
    return np.vstack([cv2.resize(picture, (CELL[1], CELL[0]), interpolation=cv2.INTER_AREA), strip])


def cell(root: Path, anatomy: str, surgery: int, number: int, complete: bool) -> NDArray[np.uint8]:
    """A frame beside its one label, or beside its complete label map."""
    folder = root / anatomy / f"{surgery:02d}"
    frame = read_frame(folder / f"image{number:02d}.png")
    mask, _ = read_mask(folder / f"mask{number:02d}.png")
    labels = np.where(mask, ANATOMIES.index(anatomy) + 1, 0).astype(np.uint8)
    if complete:
        settings = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]["phantom"]
        rendered, labels = render(
            anatomy,
            surgery,
            number,
            seed=settings["seed"],
            size=mask.shape,
            difficulty=settings["difficulty"],
        )
        if not np.array_equal(rendered, frame):
            raise SystemExit(
                f"{root} was not written with the seed and the difficulty of params.yaml: write "
                "it anew"
            )
    title = "all anatomies (never given)" if complete else f"label: {anatomy}"
    return np.hstack(
        [caption(frame, f"{anatomy}/{surgery:02d}"), caption(tint(frame, labels), title)]
    )


def legend(width: int) -> NDArray[np.uint8]:
    """The colour of each anatomy."""
    strip = np.full((24, width, 3), 24, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    x = 8
    for name, paint in zip(ANATOMIES, LABEL_COLOURS[1:], strict=True):
        cv2.rectangle(strip, (x, 7), (x + 11, 18), paint.tolist(), -1)
        cv2.putText(strip, name, (x + 16, 17), font, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
        x += 32 + cv2.getTextSize(name, font, 0.42, 1)[0][0]
    return strip


def main(root: Path, out: Path) -> None:
    """Write the sheet: every anatomy twice, each time from another surgery.

    Every fourth cell shows the complete label map.
    """
    surgeries = len(list((root / ANATOMIES[0]).iterdir()))
    cells = []
    for i in range(ROWS * COLUMNS):
        anatomy = ANATOMIES[i % len(ANATOMIES)]
        cells.append(cell(root, anatomy, 1 + 5 * i % surgeries, 0, complete=i % 4 == 3))
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    sheet = np.vstack([legend(rows[0].shape[1]), *rows])
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
