"""Stage ``data_set``: what one of data.others holds, so that ``prepare`` runs again if it changes.

DVC takes no list of folders as the dependencies of one stage.
"""

import hashlib
from pathlib import Path

from pipeline.errors import MtkdError
from pipeline.files import walk, write_json
from stages.shared.console import counted, progress, say
from stages.shared.project import Project


def run(project: Project, name: str) -> None:
    """Write the digest of a data set of data.others.

    Raises:
        MtkdError: there is none of that name, or it is not a folder.
    """
    roots = {each.name: each.root for each in project.other_sets}
    if name not in roots:
        there = ", ".join(roots) or "none"
        raise MtkdError(f"data.others has no {name}; there: {there}")
    root = roots[name]
    if not root.is_dir():
        raise MtkdError(f"data.others.{name}.root: {root} is not a folder")
    files = sorted(walk(root))
    digest = _digest(root, files)
    write_json(project.other_sets_folder / f"{name}.json", {"files": len(files), "sha256": digest})
    say(f"{name}: {counted(len(files), 'file')} in {root}")


def _digest(root: Path, files: list[Path]) -> str:
    """sha256 over names and contents."""
    digest = hashlib.sha256()
    with progress("files read") as step:
        for done, file in enumerate(files, start=1):
            digest.update(str(file.relative_to(root)).encode(errors="surrogateescape") + b"\0")
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
            step(done, len(files))
    return digest.hexdigest()
