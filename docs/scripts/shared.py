"""What the scripts of docs/ share."""

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from pipeline.dsad import Source, scan
from pipeline.errors import MtkdError


def run(main: Callable[..., None]) -> None:
    """Run a function as a command line; what a user can correct is one line."""
    try:
        typer.run(main)
    except (MtkdError, OSError) as error:
        sys.exit(f"error: {error}")


def refuse_existing(folder: Path) -> None:
    """Frames of an earlier run must not be mixed with new ones.

    Raises:
        MtkdError: the folder exists.
    """
    if folder.exists():
        raise MtkdError(f"{folder} already exists: remove it, or name another folder")


def labelled_frames(root: Path) -> list[Source]:
    """All frames of a data set in DSAD's layout, whatever its anatomies are.

    Raises:
        MtkdError: it is no folder, or has none.
    """
    if not root.is_dir():
        raise MtkdError(f"{root} is not a folder")
    frames, _ = scan(root, sorted(p.name for p in root.glob("[!.]*") if p.is_dir()))
    if not frames:
        raise MtkdError(
            f"{root} holds no <anatomy>/<surgery>/imageMM.png with a maskMM.png beside it"
        )
    return frames


def link_labelled(root: Path, frame: Source) -> None:
    """A frame and its mask at their place in another data set."""
    for file in (frame.image, frame.mask):
        assert file is not None
        link(root / frame.anatomy / frame.surgery / file.name, file)


def link(path: Path, target: Path) -> None:
    """A link to ``target``, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())
