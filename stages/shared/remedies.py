"""What to do about an error: the errors below say what is wrong, this table says which stage writes which file."""

import re
from pathlib import Path

from cache import MissingStoreError, StoreError
from pipeline.errors import DamagedFileError, MismatchError, MissingFileError, MtkdError

# Every output of dvc.yaml; what is between the braces is the name of one of several stages.
WRITTEN_BY = {
    "data/phantom": "phantom",
    "data/prepared": "prepare",
    "checkpoints/teachers/{}.safetensors": "train_teacher@{}",
    "metrics/teachers/{}.json": "train_teacher@{}",
    "results/curves/teachers/{}": "train_teacher@{}",
    "stores/{}.zarr": "cache_logits@{}",
    "metrics/cache/{}.json": "cache_logits@{}",
    "checkpoints/students/{}.safetensors": "train_student@{}",
    "metrics/students/{}.json": "train_student@{}",
    "results/curves/students/{}": "train_student@{}",
    "metrics/evaluate.json": "evaluate",
    "metrics/summary.json": "evaluate",
    "results/per_frame.csv": "evaluate",
    "results/per_surgery.csv": "evaluate",
    "results/evaluation.json": "evaluate",
    "results/qualitative": "evaluate",
    "results/plots": "evaluate",
    "results/benchmark.json": "benchmark",
    "metrics/benchmark.json": "benchmark",
    "report/index.html": "report",
}


def stage_that_writes(path: Path, root: Path = Path()) -> str | None:
    """The DVC stage whose output a path is, or lies in; None of what no stage writes.

    Args:
        path: absolute, or relative to the current folder.
        root: the project's folder.
    """
    try:
        inside = path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        return None
    for output, stage in WRITTEN_BY.items():
        match = re.fullmatch(re.escape(output).replace(r"\{\}", "([^/]+)") + "(/.*)?", inside)
        if match:
            return stage.replace("{}", match[1] or "")
    return None


def explained(error: Exception, root: Path = Path()) -> str:
    """An error's facts, and what to run about the file that it names."""
    command = _command(error, root)
    return f"{error}: run `{command}`" if command else str(error)


def _command(error: Exception, root: Path) -> str | None:
    """What makes a file anew: DVC does not see that one is damaged or made for something else, so it is forced."""
    path = getattr(error, "path", None)
    stage = stage_that_writes(path, root) if isinstance(path, Path) else None
    if stage is None or not isinstance(error, MtkdError | StoreError):
        return None
    if isinstance(error, MissingFileError | MissingStoreError):
        return f"dvc repro {stage}"
    if isinstance(error, DamagedFileError | MismatchError | StoreError):
        return f"dvc repro -s -f {stage}"
    return None
