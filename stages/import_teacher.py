"""``mtkd import-teacher``: what was trained elsewhere takes the place of a teacher that would be trained here.

Either a checkpoint of this project, or the answers of any other model as a store.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import cache
from pipeline.augmentation import fingerprint
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import write_json
from pipeline.prepared import load_frame
from pipeline.settings import Params
from stages.cache_logits import Plan, make_plans
from stages.console import progress, say
from stages.elsewhere import write_stand_in
from stages.layout import METRICS, RESULTS, store, teacher_checkpoint
from stages.params import load_params


def run(anatomy: str, source: Path) -> None:
    """Import a teacher or its answers, and have DVC take the stages that would make them for done.

    Args:
        anatomy: one of data.anatomies.
        source: a checkpoint (``.safetensors``) of this project with one decoder, trained at data.image_size; or a store
            (``.zarr``) with the answers of any model on all training frames.

    Raises:
        MtkdError: the anatomy is unknown, source is neither or does not fit, or this is no project of DVC.
        StoreError: the store is incomplete or damaged.
    """
    params = load_params()
    if anatomy not in params.data.anatomies:
        raise MtkdError(f"'{anatomy}' is not in data.anatomies: {', '.join(params.data.anatomies)}")
    if source.is_dir():
        _import_store(anatomy, source, params)
    elif source.is_file():
        _import_checkpoint(anatomy, source, params)
    else:
        raise MtkdError(f"{source} is not there: give a checkpoint (.safetensors) of this project, or a store (.zarr)")


def _import_checkpoint(anatomy: str, source: Path, params: Params) -> None:
    try:
        network, card = load_checkpoint(source, f"train_teacher@{anatomy}")
    except MtkdError as error:
        expected = "expected a .safetensors file that this project wrote, or a .zarr store"
        raise MtkdError(f"{source} cannot be imported, it is missing or no whole checkpoint: {expected}") from error
    if network.decoders != 1 or card.image_size != params.data.image_size:
        raise MtkdError(
            f"{source} has {network.decoders} decoders and was trained at {card.image_size}; "
            f"a teacher has one, and data.image_size is {params.data.image_size}"
        )
    network.anatomies = (anatomy,)
    target = teacher_checkpoint(anatomy)
    target.unlink(missing_ok=True)  # DVC may have linked it to its own copy
    save_checkpoint(target, network, card.image_size)
    _take_training_for_done(anatomy, source)
    say(f"{target}: imported from {source}; next: `dvc repro`, which asks it and trains the student, but not it")


def _import_store(anatomy: str, source: Path, params: Params) -> None:
    """Copy the answers, each checked, into a store that belongs to this project's frames and settings."""
    (plan,) = make_plans([anatomy], params)
    given = cache.open_store(source)
    _require_fit(given, plan)
    write_stand_in(teacher_checkpoint(anatomy), given.identity)
    with plan.writer((given.shape[-2], given.shape[-1])) as writer, progress(f"{anatomy}: frames copied") as bar:
        for frame in plan.frames[writer.next :]:
            writer.append(given.read(frame.id)[None], [given.pixels(frame.id)])
            bar(writer.next, writer.total)
        writer.finish(store(anatomy))
    write_json(METRICS / "cache" / f"{anatomy}.json", cache.stats(store(anatomy)))
    _take_training_for_done(anatomy, source)
    _commit(f"cache_logits@{anatomy}")
    say(f"{store(anatomy)}: imported from {source}; next: `dvc repro`, which trains the student with it")


def _require_fit(given: cache.Store, plan: Plan) -> None:
    """Refuse answers to other frames than those that the student will see.

    Raises:
        MtkdError: says what differs.
    """
    if plan.params.cache.views:
        raise MtkdError(f"{given.path} answers clean frames, and cache.views is {plan.params.cache.views}: set it to 0")
    missing = [frame.id for frame in plan.frames if frame.id not in given.frames]
    if missing:
        raise MtkdError(f"{given.path} lacks {len(missing)} of {len(plan.frames)} training frames, {missing[0]} first")
    other = [f.id for f in plan.frames if given.pixels(f.id) != fingerprint(load_frame(f.image))]
    if other:
        raise MtkdError(
            f"{given.path} answers other pixels of {len(other)} of {len(plan.frames)} training frames, {other[0]} "
            "first: show the model the frames under data/prepared/frames/train"
        )


def _take_training_for_done(anatomy: str, source: Path) -> None:
    """Write the training stage's other outputs, which nobody can know, and tell DVC."""
    write_json(METRICS / "teachers" / f"{anatomy}.json", {"val_dice": {"mean": None}, "imported": source.name})
    curves = RESULTS / "curves" / "teachers" / anatomy
    shutil.rmtree(curves, ignore_errors=True)
    curves.mkdir(parents=True)
    (curves / "imported.tsv").write_text("step\n")
    _commit(f"train_teacher@{anatomy}")


def _commit(stage: str) -> None:
    """Tell DVC that the outputs on disk are the stage's."""
    done = subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", stage], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MtkdError(f"dvc commit {stage} failed ({lines[0]}): run it yourself, or `dvc repro` makes it again")
