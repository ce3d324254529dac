"""``mtkd import-teacher``: what was trained elsewhere, in place of a teacher trained here.

Either a checkpoint of this project, or the logits of any other model as a store.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import cache
from pipeline.augmentation import fingerprint
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import emptied, write_atomically, write_json
from pipeline.prepared import load_frame
from stages.shared.console import say
from stages.shared.project import Project
from stages.shared.remedies import explained
from stages.stores.imported import write_stand_in
from stages.stores.plan import StorePlan, make_plans
from stages.stores.writing import Prediction, write_store


def run(project: Project, anatomy: str, source: Path) -> None:
    """Import a teacher or its logits, and have DVC take the stages that would make them for done.

    Nothing is replaced before everything was checked.

    Args:
        project: where it goes.
        anatomy: one of data.anatomies.
        source: a checkpoint (``.safetensors``) of this project with one decoder, trained at
            data.image_size; or a store (``.zarr``) with the logits of any model on all training
            frames.

    Raises:
        MtkdError: the anatomy is unknown, source is neither or does not fit, or this is no project
            of DVC.
        StoreError: the store is incomplete or damaged.
    """
    project.require_anatomies([anatomy])
    _require_dvc(project)
    if source.is_dir():
        _import_store(project, anatomy, source)
    elif source.is_file():
        _import_checkpoint(project, anatomy, source)
    else:
        raise MtkdError(
            f"{source} is not there: give a checkpoint (.safetensors) of this project, or a store "
            "(.zarr)"
        )


def _require_dvc(project: Project) -> None:
    """Refuse where DVC could not be told."""
    root = project.root.absolute()
    if not (root / "dvc.yaml").is_file() or not any(
        (folder / ".dvc").is_dir() for folder in (root, *root.parents)
    ):
        raise MtkdError(
            f"{root} is not a project of DVC, with .dvc and dvc.yaml: run this in the project's "
            "checkout"
        )


def _import_checkpoint(project: Project, anatomy: str, source: Path) -> None:
    params = project.params
    network, card = load_checkpoint(source)
    problems = []
    if network.decoders != 1:
        problems.append(f"has {network.decoders} decoders, a teacher has one")
    if card.anatomies[0] != anatomy and card.anatomies[0] in params.data.anatomies:
        problems.append(f"was trained for {card.anatomies[0]}")
    if card.image_size != params.data.image_size:
        problems.append(
            f"was trained at {card.image_size}, data.image_size is {params.data.image_size}"
        )
    if problems:
        raise MtkdError(
            f"{source} {' and '.join(problems)}: give a teacher that was trained for this project"
        )
    project.frames_of("train", [anatomy])  # DVC takes training for done only where its inputs are
    network.anatomies = (anatomy,)
    target = project.teacher_checkpoint(anatomy)
    save_checkpoint(target, network, card.image_size)
    _take_training_for_done(project, anatomy, source)
    say(
        f"{target}: imported from {source}; next: `dvc repro`, which runs it on all frames and "
        "trains the student"
    )


def _import_store(project: Project, anatomy: str, source: Path) -> None:
    """Copy the logits, each checked, into a store of this project's frames and settings."""
    given = cache.open_store(source)
    (plan,) = make_plans(project, [anatomy])
    _require_fit(given, plan)
    errors = given.integrity_errors()
    if errors:
        raise MtkdError("\n".join(explained(error, project.root) for error in errors))
    stand_in = project.scratch / "checkpoints" / f"{anatomy}.safetensors"
    write_stand_in(stand_in, given.identity)
    write_store(replace(plan, checkpoint=stand_in), _Copied(plan, given))
    write_atomically(plan.checkpoint, stand_in.read_bytes())  # it may go onto another disk
    stand_in.unlink()
    write_json(plan.metrics, cache.stats(plan.path))
    _take_training_for_done(project, anatomy, source)
    _commit(project, f"cache_logits@{anatomy}")
    say(f"{plan.path}: imported from {source}; next: `dvc repro`, which trains the student with it")


@dataclass(frozen=True)
class _Copied:
    """The logits of another store, frame by frame."""

    plan: StorePlan
    given: cache.Store

    @property
    def grid(self) -> tuple[int, int]:
        return self.given.shape[-2], self.given.shape[-1]

    def __call__(self, start: int) -> Iterator[Prediction]:
        for frame in self.plan.frames[start:]:
            yield self.given.read(frame.id)[None].astype(np.float32), [self.given.pixels(frame.id)]


def _require_fit(given: cache.Store, plan: StorePlan) -> None:
    """Refuse logits of another teacher, of other frames, or on another grid.

    Raises:
        MtkdError: says what differs.
    """
    if given.anatomy != plan.anatomy:
        raise MtkdError(
            f"{given.path} holds the logits of a teacher of {given.anatomy}, expected "
            f"{plan.anatomy}"
        )
    if plan.params.cache.views:
        raise MtkdError(
            f"{given.path} holds logits of clean frames, and cache.views is "
            f"{plan.params.cache.views}: set it to 0"
        )
    missing = [frame.id for frame in plan.frames if frame.id not in given.frames]
    if missing:
        raise MtkdError(
            f"{given.path} lacks {len(missing)} of {len(plan.frames)} training frames, "
            f"{missing[0]} first"
        )
    _require_same_grid(given, plan)
    other = [f.id for f in plan.frames if given.pixels(f.id) != fingerprint(load_frame(f.image))]
    if other:
        raise MtkdError(
            f"{given.path} holds logits of other pixels of {len(other)} of {len(plan.frames)} "
            f"training frames, {other[0]} first: give the model the frames under "
            "data/prepared/frames/train"
        )


def _require_same_grid(given: cache.Store, plan: StorePlan) -> None:
    """A student reads all stores on one grid."""
    for anatomy in plan.params.data.anatomies:
        try:
            other = cache.open_store(plan.project.store(anatomy))
        except cache.StoreError:
            continue
        if anatomy != plan.anatomy and other.shape[-2:] != given.shape[-2:]:
            raise MtkdError(
                f"{given.path} has the grid {given.shape[-2:]}, {other.path} has "
                f"{other.shape[-2:]}, and a student needs one: write it on that grid, or remove "
                "the other stores if all will be replaced"
            )


def _take_training_for_done(project: Project, anatomy: str, source: Path) -> None:
    """Write the training stage's other outputs, which nobody can know, and tell DVC."""
    write_json(
        project.teacher_metrics(anatomy),
        {"val_dice": {"mean": None}, "imported": source.name},
    )
    curves = emptied(project.teacher_curves(anatomy))
    (curves / "imported.tsv").write_text("step\n")
    _commit(project, f"train_teacher@{anatomy}")


def _commit(project: Project, stage: str) -> None:
    """Tell DVC that the outputs on disk are the stage's."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "-f", stage],
        cwd=project.root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MtkdError(
            f"dvc commit {stage} failed ({lines[0]}): run it yourself, or `dvc repro` makes it "
            "again"
        )
