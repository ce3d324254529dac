"""Make two folders of links from a data set: one without every second training frame, and those, unlabelled.

    python docs/hide_masks.py SOURCE LABELLED UNLABELLED VAL_AND_TEST_SURGERIES...

Then ``data.root: LABELLED`` and ``data.unlabelled_root: UNLABELLED`` show what frames without masks are worth.
"""

import sys
from pathlib import Path

from pipeline.dsad import scan, surgery_id


def main(source: Path, labelled: Path, unlabelled: Path, kept: set[str | int]) -> None:
    """Frames of the surgeries in ``kept`` all stay labelled."""
    for folder in (labelled, unlabelled):
        if folder.exists():
            sys.exit(f"{folder} is there already: remove it, or name another folder")
    folders = sorted(p.name for p in source.iterdir() if p.is_dir())
    frames, _ = scan(source, folders)
    for number, frame in enumerate(frames):
        if surgery_id(frame.surgery) in kept or number % 2 == 0:
            for file in (frame.image, frame.mask):
                link(labelled / frame.anatomy / frame.surgery / file.name, file)
        else:
            link(unlabelled / frame.surgery / f"{frame.anatomy}_{frame.image.name}", frame.image)


def link(path: Path, target: Path) -> None:
    """A link to ``target``, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


if __name__ == "__main__":
    source, labelled, unlabelled, *surgeries = sys.argv[1:]
    main(Path(source), Path(labelled), Path(unlabelled), {surgery_id(s) for s in surgeries})
