"""``mtkd cache ...``: look at the stores, check them, clear what nobody needs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

import cache
from pipeline.errors import MtkdError
from pipeline.inference import answers
from pipeline.machine import Machine
from stages.cache_logits import Plan, make_plans
from stages.console import console, progress, say
from stages.layout import SCRATCH, STORES, store, teacher_checkpoint
from stages.params import load_params


def list_stores() -> None:
    """Every store, whole or begun."""
    table = Table(title="Logit stores")
    for column in ("store", "state"):
        table.add_column(column)
    for column in ("frames", "views", "grid", "MiB", "identity"):
        table.add_column(column, justify="right")
    for path in _stores(STORES):
        try:
            one = cache.open_store(path)
        except cache.StoreError as error:
            table.add_row(str(path), f"unusable: {error}", *[""] * 5)
            continue
        views, frames, _, height, width = one.shape
        size = f"{cache.stats(path)['bytes'] / 2**20:.1f}"
        table.add_row(str(path), "complete", str(frames), str(views), f"{height}x{width}", size, one.identity[:12])
    for path in _stores(SCRATCH / STORES):
        table.add_row(str(path), "begun: `mtkd cache-logits` goes on with it", *[""] * 5)
    console.print(table)


def show_stats(anatomies: list[str]) -> None:
    """Sizes of stores as JSON, by anatomy."""
    print(json.dumps({anatomy: cache.stats(store(anatomy)) for anatomy in _chosen(anatomies)}, indent=2))


def verify(anatomies: list[str], recompute: int, tolerance: float, machine: Machine) -> None:
    """Read every frame of stores, and ask their teachers again on some.

    Args:
        anatomies: whose stores; all if none is named.
        recompute: number of random frames on which the teacher is asked again.
        tolerance: largest difference of a logit that counts as the same answer.
        machine: where teachers compute.

    Raises:
        MtkdError: something is wrong; one line for each problem.
    """
    problems = []
    for anatomy in _chosen(anatomies):
        found = cache.verify(store(anatomy))
        if recompute and not found:
            found = _recomputed(anatomy, recompute, tolerance, machine)
        say(f"{store(anatomy)}: {_problems(found) if found else 'whole'}")
        problems += found
    if problems:
        raise MtkdError("\n".join([f"{_problems(problems)}:", *problems]))


def _recomputed(anatomy: str, count: int, tolerance: float, machine: Machine) -> list[str]:
    """Where a teacher does not answer what its store says."""
    (plan,) = make_plans([anatomy], load_params())
    one, path = cache.open_store(store(anatomy)), teacher_checkpoint(anatomy)
    network = plan.teacher()
    if one.identity_parts.get("teacher") != cache.file_sha256(path):
        return [f"{one.path} was written by another teacher than {path}: run `dvc repro cache_logits@{anatomy}`"]
    questions = plan.questions()
    chosen = np.random.default_rng().choice(len(questions), min(count, len(questions)), replace=False)
    asked = [questions[i] for i in chosen]
    problems = []
    single = [range(i, i + 1) for i in range(len(asked))]
    with progress(f"{anatomy}: teacher asked again") as bar:
        answered = answers(network, asked, single, plan.params.cache.precision, machine)
        for number, (position, (logits, _)) in enumerate(zip(chosen, answered, strict=True), start=1):
            view, frame = divmod(int(position), len(plan.frames))
            stored = one.read(frame, view).astype(np.float32)
            allowed = tolerance * (1 + np.abs(stored)) + _rounding(plan) * np.abs(stored)
            if (np.abs(logits[0, 0] - stored) > allowed).any():
                worst = float(np.abs(logits[0, 0] - stored).max())
                problems.append(
                    f"{one.path}: frame {one.frames[frame]} (view {view}): the teacher now answers otherwise, by up to "
                    f"{worst:.3g}: run `dvc repro -f cache_logits@{anatomy}`"
                )
            bar(number, len(asked))
    return problems


def _rounding(plan: Plan) -> float:
    keep = plan.params.cache.keep_bits
    return 0.0 if keep is None else 2.0**-keep


def prune(dry_run: bool) -> None:
    """Remove stores and unfinished stores that no current setting can use."""
    params = load_params()
    wanted = {plan.anatomy: plan for plan in make_plans([], params)}
    stale = [(path, reason) for path in _stores(STORES) if (reason := _useless(path, wanted))]
    stale += [(path, "unfinished") for path in _stores(SCRATCH / STORES)]
    for path, reason in stale:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        say(f"{'would remove' if dry_run else 'removed'} {path}: {reason}, {size / 2**20:.1f} MiB")
        if not dry_run:
            shutil.rmtree(path)
    if not stale:
        say("nothing to remove")


def _useless(path: Path, wanted: dict[str, Plan]) -> str:
    """Why no run with the current settings could read a store; empty if one could."""
    from stages.store_identity import expected_parts

    if path.stem not in wanted:
        return f"{path.stem} is not in data.anatomies"
    try:
        one = cache.open_store(path)
    except cache.StoreError as error:
        return str(error)
    plan, checkpoint = wanted[path.stem], teacher_checkpoint(path.stem)
    expected = expected_parts(plan.params, plan.digest, checkpoint if checkpoint.is_file() else None)
    other = [part for part, value in expected.items() if one.identity_parts.get(part) != value]
    return f"written for another {', '.join(other)}" if other else ""


def _stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


def _chosen(anatomies: list[str]) -> list[str]:
    """Anatomies that were named, or all of params.yaml."""
    known = load_params().data.anatomies
    unknown = sorted(set(anatomies) - set(known))
    if unknown:
        raise MtkdError(f"not in data.anatomies: {', '.join(unknown)}; there: {', '.join(known)}")
    return anatomies or known


def _problems(found: Sequence[str]) -> str:
    return f"{len(found)} problem{'s' * (len(found) != 1)}"
