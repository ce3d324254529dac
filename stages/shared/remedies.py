"""What to do about an error.

The errors below say what is wrong. Of these tables one says which stage writes which file, and
another what each verb can do with less memory.
"""

import os
import re
from pathlib import Path

from cache import IdentityError, IncompleteError, IntegrityError, MissingStoreError
from pipeline.errors import (
    DamagedFileError,
    MismatchError,
    MissingFileError,
    NotFiniteError,
    TooLittleMemoryError,
)

# Every output of dvc.yaml; what is between the braces is the name of one of several stages.
WRITTEN_BY = {
    "data/settings.txt": "settings",
    "data/others/settings.txt": "settings",
    "data/others/{}.json": "data_set@{}",
    "data/phantom": "phantom",
    "data/prepared": "prepare",
    "checkpoints/teachers/{}.safetensors": "train_teacher@{}",
    "metrics/teachers/{}.json": "train_teacher@{}",
    "results/curves/teachers/{}": "train_teacher@{}",
    "stores/{}.zarr": "cache_logits@{}",
    "scratch/stores/{}.zarr": "cache_logits@{}",  # where it grows; not an output itself
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
# Of a store that no stage of this project writes.
WRITE_AGAIN = "write it again, or take a whole copy"
STORE_ERRORS = (MissingStoreError, IncompleteError, IdentityError, IntegrityError)
MISSING = (MissingFileError, MissingStoreError, IncompleteError)
USELESS = (DamagedFileError, MismatchError, IdentityError, IntegrityError)


TRAINING = (
    "--accumulate 2 computes a batch in two pieces (MTKD_ACCUMULATE=2 under `dvc repro`); or lower "
    "batch_size, data.image_size, or use precision bf16-mixed"
)
ANOTHER_DEVICE = "choose another --device, such as cpu"
# By verb, what to do where memory is too little.
LESS_MEMORY = {
    "train-teacher": TRAINING,
    "train-teachers": TRAINING,
    "repro": TRAINING,
    "train-student": TRAINING,
    "cache-logits": "lower cache.batch_size, or choose another --device",
    "evaluate": f"{ANOTHER_DEVICE}; or, of the stage, lower evaluate.batch_size",
    "benchmark": f"{ANOTHER_DEVICE}; or smaller networks, or fewer --decoders",
    "plan": f"{ANOTHER_DEVICE}; or lower the batch sizes in params.yaml",
    "study": "lower student.batch_size or evaluate.batch_size, or choose fewer --jobs",
    "predict": "give it smaller frames, or choose another --device",
    "live": ANOTHER_DEVICE,
}


def stage_that_writes(path: Path, root: Path = Path()) -> str | None:
    """The DVC stage whose output a path is, or lies in; None of what no stage writes.

    Args:
        path: absolute, or relative to the current folder.
        root: the project's folder.
    """
    # As it is written, since outputs may be links; then where links lead, as those of a study do.
    named = _absolute(path), _absolute(root)
    followed = path.resolve(), root.resolve()
    for file, folder in (named, followed):
        stage = _writer_of(file.relative_to(folder)) if file.is_relative_to(folder) else None
        if stage is not None:
            return stage
    return None


def _absolute(path: Path) -> Path:
    """Without dots, and with links as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve follows links)


def _writer_of(path: Path) -> str | None:
    """The stage that writes a path below the project's folder."""
    for output, stage in WRITTEN_BY.items():
        pattern = re.escape(output).replace(r"\{\}", "([^/]+)") + "(/.*)?"
        match = re.fullmatch(pattern, path.as_posix())
        if match:
            return stage.replace("{}", match[1] or "")
    return None


def explained(error: Exception, root: Path = Path(), verb: str | None = None) -> str:
    """An error's facts, and what to do about them.

    Args:
        error: of this project, or any other one.
        root: the project's folder.
        verb: of the command line; the first word where there are two.
    """
    if isinstance(error, TooLittleMemoryError):
        return f"{error}: {LESS_MEMORY.get(verb or '', ANOTHER_DEVICE)}"
    if isinstance(error, NotFiniteError) and "cross_entropy" not in error.terms:
        return f"{error}; `mtkd cache verify` says whether the stored logits are complete"
    action = _action(error, root)
    return f"{error}: {action}" if action else str(error)


def _action(error: Exception, root: Path) -> str:
    """What to do, empty if the error says that itself or nothing is known."""
    path = getattr(error, "path", None)
    if not isinstance(path, Path):
        return ""
    stage = stage_that_writes(path, root)
    if stage is not None and isinstance(error, MISSING):
        return f"run `dvc repro {stage}`"
    if stage is not None and isinstance(error, USELESS):
        # DVC does not see that a file is damaged or made for something else: the stage is forced.
        return f"run `dvc repro -s -f {stage}`"
    if stage is None and path.suffix == ".safetensors":
        return _action_for_named_checkpoint(error)
    if isinstance(error, MissingStoreError):
        return "name a .zarr store; `mtkd cache ls` lists this project's"
    # A copy that failed is not a store yet.
    is_copy = any(part.endswith(".partial") for part in path.parts)
    return WRITE_AGAIN if isinstance(error, STORE_ERRORS) and not is_copy else ""


def _action_for_named_checkpoint(error: Exception) -> str:
    """What to do about a checkpoint that no stage writes: the user has named it."""
    if isinstance(error, MissingFileError):
        return "name a .safetensors file that `mtkd train-teacher` or `mtkd train-student` wrote"
    if isinstance(error, DamagedFileError):
        return "copy it again, or train again if it was made here"
    return ""
