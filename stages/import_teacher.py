"""``mtkd import-teacher``: what was trained elsewhere takes the place of a teacher that would be trained here.

Either a checkpoint of this project, or the answers of any other model as a store.
"""

import subprocess
import sys
from pathlib import Path

import cache
from pipeline.augmentation import fingerprint
from pipeline.checkpoint import save_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import emptied, write_atomically, write_json
from pipeline.prepared import load_frame
from pipeline.settings import Params
from stages.shared.console import progress, say
from stages.shared.given_checkpoint import load_given
from stages.shared.params import load_params
from stages.shared.paths import METRICS, RESULTS, SCRATCH, frames_of, store, teacher_checkpoint
from stages.stores.imported import REMEDY, write_stand_in
from stages.stores.plan import StorePlan, make_plans, require_space


def run(anatomy: str, source: Path) -> None:
    """Import a teacher or its answers, and have DVC take the stages that would make them for done.

    Nothing is replaced before everything was checked.

    Args:
        anatomy: one of data.anatomies.
        source: a checkpoint (``.safetensors``) of this project with one decoder, trained at
            data.image_size; or a store (``.zarr``) with the answers of any model on all training
            frames.

    Raises:
        MtkdError: the anatomy is unknown, source is neither or does not fit, or this is no project
            of DVC.
        StoreError: the store is incomplete or damaged.
    """
    params = load_params()
    if anatomy not in params.data.anatomies:
        raise MtkdError(f"'{anatomy}' is not in data.anatomies: {', '.join(params.data.anatomies)}")
    _require_dvc()
    if source.is_dir():
        _import_store(anatomy, source, params)
    elif source.is_file():
        _import_checkpoint(anatomy, source, params)
    else:
        raise MtkdError(
            f"{source} is not there: give a checkpoint (.safetensors) of this project, or a store "
            "(.zarr)"
        )


def _require_dvc() -> None:
    """Refuse where DVC could not be told."""
    here = Path.cwd()
    if not Path("dvc.yaml").is_file() or not any(
        (folder / ".dvc").is_dir() for folder in (here, *here.parents)
    ):
        raise MtkdError(
            f"{here} is no project of DVC, with .dvc and dvc.yaml: run this in the project's "
            "checkout"
        )


def _import_checkpoint(anatomy: str, source: Path, params: Params) -> None:
    network, card = load_given(source)
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
    frames_of("train", [anatomy])  # DVC takes training for done only where its inputs are
    network.anatomies = (anatomy,)
    target = teacher_checkpoint(anatomy)
    save_checkpoint(target, network, card.image_size)
    _take_training_for_done(anatomy, source)
    say(
        f"{target}: imported from {source}; next: `dvc repro`, which asks it and trains the "
        "student, but not it"
    )


def _import_store(anatomy: str, source: Path, params: Params) -> None:
    """Copy the answers, each checked, into a store that belongs to this project's frames and settings."""
    (plan,) = make_plans([anatomy], params)
    given = cache.open_store(source, remedy=REMEDY)
    _require_fit(given, plan)
    if damaged := given.faults():
        raise MtkdError("\n".join(damaged))
    target, stand_in = teacher_checkpoint(anatomy), SCRATCH / teacher_checkpoint(anatomy)
    write_stand_in(stand_in, given.identity)
    with (
        plan.writer((given.shape[-2], given.shape[-1]), stand_in) as writer,
        progress(f"{anatomy}: frames copied") as bar,
    ):
        require_space(
            plan.raw_bytes(given.shape[-2:]), writer.next / writer.total, writer.bytes_written
        )
        for frame in plan.frames[writer.next :]:
            writer.append(given.read(frame.id)[None], [given.pixels(frame.id)])
            bar(writer.next, writer.total)
        writer.finish(store(anatomy))
    write_atomically(target, stand_in.read_bytes())  # not moved: it may go onto another disk
    stand_in.unlink()
    write_json(METRICS / "cache" / f"{anatomy}.json", cache.stats(store(anatomy)))
    _take_training_for_done(anatomy, source)
    _commit(f"cache_logits@{anatomy}")
    say(
        f"{store(anatomy)}: imported from {source}; next: `dvc repro`, which trains the student "
        "with it"
    )


def _require_fit(given: cache.Store, plan: StorePlan) -> None:
    """Refuse answers of another teacher, to other frames than the student will see, or on a grid of their own.

    Raises:
        MtkdError: says what differs.
    """
    if given.anatomy != plan.anatomy:
        raise MtkdError(
            f"{given.path} holds the answers of a teacher of {given.anatomy}, expected "
            f"{plan.anatomy}"
        )
    if plan.params.cache.views:
        raise MtkdError(
            f"{given.path} answers clean frames, and cache.views is {plan.params.cache.views}: "
            "set it to 0"
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
            f"{given.path} answers other pixels of {len(other)} of {len(plan.frames)} training "
            f"frames, {other[0]} "
            "first: show the model the frames under data/prepared/frames/train"
        )


def _require_same_grid(given: cache.Store, plan: StorePlan) -> None:
    """A student reads all stores on one grid."""
    for anatomy in plan.params.data.anatomies:
        try:
            one = cache.open_store(store(anatomy))
        except cache.StoreError:
            continue
        if anatomy != plan.anatomy and one.shape[-2:] != given.shape[-2:]:
            raise MtkdError(
                f"{given.path} has the grid {given.shape[-2:]}, {one.path} has {one.shape[-2:]}, "
                "and a student needs "
                "one: write it on that grid, or remove the other stores if all will be replaced"
            )


def _take_training_for_done(anatomy: str, source: Path) -> None:
    """Write the training stage's other outputs, which nobody can know, and tell DVC."""
    write_json(
        METRICS / "teachers" / f"{anatomy}.json",
        {"val_dice": {"mean": None}, "imported": source.name},
    )
    curves = emptied(RESULTS / "curves" / "teachers" / anatomy)
    (curves / "imported.tsv").write_text("step\n")
    _commit(f"train_teacher@{anatomy}")


def _commit(stage: str) -> None:
    """Tell DVC that the outputs on disk are the stage's."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "-f", stage], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MtkdError(
            f"dvc commit {stage} failed ({lines[0]}): run it yourself, or `dvc repro` makes it "
            "again"
        )
