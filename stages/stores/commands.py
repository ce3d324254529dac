"""``mtkd cache ...``: look at the stores, check them, clear what nobody needs."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

import cache
from pipeline.errors import MtkdError
from pipeline.inference import fingerprints, predictions
from pipeline.machine import Machine
from pipeline.prepared import frames_digest
from pipeline.training_errors import translated_errors
from stages.shared.console import console, counted, progress, readable, say
from stages.shared.project import Places, Project, load_project
from stages.shared.remedies import explained
from stages.stores.identity import expected_parts, known_checkpoint, misfit_line, misfits
from stages.stores.plan import StorePlan, make_plans, was_imported

COPY = ".partial"  # see cache.place.copy_place
# Largest difference of a logit, relative to 1 + |logit|, that a teacher may have from its store on
# another device or in another batch, by the store's precision. On an H100 and on CPUs 7e-4, 7e-3,
# 2e-2 and 0.28 were seen; another anatomy's teacher differs by 0.6 and more, in every frame.
TOLERANCES = {"32-true": 2e-3, "tf32": 5e-2, "16-mixed": 5e-2, "bf16-mixed": 3e-1}
Wanted = Mapping[str, Mapping[str, object]]  # anatomy -> parts of the identity


def list_stores(places: Places) -> None:
    """Every store, whole or begun, and what was put aside when a run was stopped."""
    table = Table(title="Logit stores")
    for column in ("store", "state"):
        table.add_column(column)
    for column in ("frames", "views", "grid", "size", "identity"):
        table.add_column(column, justify="right")
    for path in _stores(places.stores):
        try:
            store = cache.open_store(path)
        except cache.StoreError as error:
            table.add_row(str(path), f"unusable: {explained(error, places.root)}", *[""] * 5)
            continue
        views, frames, _, height, width = store.shape
        size = readable(cache.stats(path)["bytes"])
        table.add_row(
            str(path),
            "complete",
            str(frames),
            str(views),
            f"{height}x{width}",
            size,
            store.identity[:12],
        )
    begun = _begun(places)
    if begun:
        project = load_project(places.root)
        wanted = _wanted(project)
        for path in begun:
            table.add_row(str(path), _state(project, path, wanted), *[""] * 5)
    console.print(table)


def _state(project: Project, path: Path, wanted: Wanted) -> str:
    """Of what lies in scratch, or was left by a copy."""
    if cache.is_being_written(_writers(project, path)):
        return "being written"
    reason = _useless(project, path, wanted)
    return (
        f"{reason}: `mtkd cache prune` removes it"
        if reason
        else "begun: `mtkd cache-logits` goes on with it"
    )


def show_stats(places: Places, whose: list[str]) -> None:
    """Sizes of stores as JSON, by anatomy or path."""
    sizes = {name: cache.stats(path) for name, path in _selected(places, whose).items()}
    print(json.dumps(sizes, indent=2))


@translated_errors()
def verify(
    places: Places,
    whose: list[str],
    recompute: int,
    tolerance: float | None,
    machine: Machine,
) -> None:
    """Read every frame of stores, compare identities, and run teachers again on some frames.

    If frames are prepared, each store is also compared with their pixels, frame by frame.

    Args:
        places: where stores and settings lie; these are read only if anatomies are named.
        whose: anatomies, or paths of stores; all anatomies if none is named.
        recompute: number of random frames on which each teacher that is here runs inference again.
        tolerance: largest difference of a logit, relative to 1 + |logit|, that counts as the same
            logit; None for that of the store's precision, see :data:`TOLERANCES`.
        machine: where teachers compute.

    Raises:
        MtkdError: something is wrong; one line for each problem.
    """
    selected = _selected(places, whose)
    anatomies = [name for name in selected if not is_path(name)]
    project = load_project(places.root) if anatomies else None
    verification = _Verification(recompute, tolerance, machine)
    if project is not None:
        verification = _verification_of(project, anatomies, bool(whose), verification)
    problems = []
    for name, path in selected.items():
        faults = _faults(path, places.root) or verification.faults(name, path)
        say(f"{path}: {counted(len(faults), 'problem') if faults else 'whole'}")
        problems += faults
    if problems:
        raise MtkdError("\n".join([f"{counted(len(problems), 'problem')}:", *problems]))


@dataclass(frozen=True)
class _Verification:
    """What stores are compared with, beyond being complete.

    Attributes:
        recompute: number of frames on which a teacher runs inference again.
        tolerance: of a logit, see :func:`verify`.
        machine: where teachers compute.
        wanted: parts of each anatomy's identity; empty if stores are named by paths alone.
        pixels: fingerprints of what teachers see, or None.
        plans: of the teachers that run again, by anatomy.
    """

    recompute: int
    tolerance: float | None
    machine: Machine
    wanted: Wanted = field(default_factory=dict)
    pixels: Sequence[int] | None = None
    plans: Mapping[str, StorePlan] = field(default_factory=dict)

    def faults(self, name: str, path: Path) -> list[str]:
        """What is wrong with a complete store, one line each: the first kind that is found."""
        if name in self.wanted:
            line = misfit_line(cache.open_store(path), name, self.wanted[name])
            faults = [line] if line else _other_pixels(path, self.pixels)
            if faults:
                return faults
        if name in self.plans:
            return _recomputed(self.plans[name], self.recompute, self.tolerance, self.machine)
        return []


def _verification_of(
    project: Project, anatomies: list[str], are_named: bool, settings: _Verification
) -> _Verification:
    """What the stores of anatomies are compared with; imported ones are recomputed if named."""
    wanted = _wanted(project)
    pixels = _prepared_pixels(project)
    plans = make_plans(project, anatomies) if settings.recompute else []
    recomputed = {plan.anatomy: plan for plan in plans if are_named or not was_imported(plan)}
    return replace(settings, wanted=wanted, pixels=pixels, plans=recomputed)


def _faults(path: Path, root: Path) -> list[str]:
    """What is wrong with a store and what to do about it, one line each; empty if it is whole."""
    try:
        return [explained(error, root) for error in cache.open_store(path).integrity_errors()]
    except cache.StoreError as error:
        return [explained(error, root)]


def _prepared_pixels(project: Project) -> list[int] | None:
    """Fingerprints of all inputs of the teachers, view by view; None if nothing is prepared."""
    try:
        plan = make_plans(project, [])[0]
    except MtkdError:
        return None
    inputs = plan.inputs()
    pixels = []
    with progress("frames read") as bar:
        for fingerprint in fingerprints(inputs):
            pixels.append(fingerprint)
            bar(len(pixels), len(inputs))
    return pixels


def _other_pixels(path: Path, pixels: Sequence[int] | None) -> list[str]:
    """Whether a store was written, somewhere, for other pixels than those that are prepared."""
    store = cache.open_store(path)
    views, frames = store.shape[:2]
    places = product(range(views), range(frames))
    other = [
        place
        for place, expected in zip(places, pixels or [], strict=False)
        if store.pixels(place[1], place[0]) != expected
    ]
    if not other:
        return []
    view, frame = other[0]
    return [
        f"{store.path} holds logits of other pixels than the prepared ones in {len(other)} places, "
        f"frame {store.frames[frame]} "
        f"(view {view}) first: run `dvc repro -s -f cache_logits@{store.anatomy}`"
    ]


def _recomputed(
    plan: StorePlan, count: int, tolerance: float | None, machine: Machine
) -> list[str]:
    """Where a teacher's logits are not those of its store; that there is no teacher counts, too."""
    try:
        network = plan.teacher()
    except MtkdError as error:
        return [explained(error, plan.project.root)]
    store = cache.open_store(plan.path)
    inputs = plan.inputs()
    precision = plan.params.cache.precision
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    positions = np.random.default_rng().choice(len(inputs), min(count, len(inputs)), replace=False)
    sample = [inputs[i] for i in positions]
    problems = []
    single = [range(i, i + 1) for i in range(len(sample))]
    with progress(f"{plan.anatomy}: frames inferred again") as bar:
        computed = predictions(network, sample, single, precision, machine)
        for number, (position, (logits, _)) in enumerate(
            zip(positions, computed, strict=True), start=1
        ):
            view, frame = divmod(int(position), len(plan.frames))
            worst = _difference(
                logits[0, 0], store.read(frame, view).astype(np.float32), _rounding(plan)
            )
            if not worst <= allowed:
                problems.append(
                    f"{store.path}: frame {store.frames[frame]} (view {view}): the teacher's "
                    f"logits are others now: one differs by {worst:.3g} times 1 + |logit|, the "
                    f"tolerance for cache.precision {precision} is {allowed:g}: "
                    f"run `dvc repro -s -f cache_logits@{plan.anatomy}`"
                )
            bar(number, len(sample))
    return problems


def _difference(logits: NDArray[np.float32], stored: NDArray[np.float32], rounding: float) -> float:
    """The largest of a cell, relative to 1 + |logit|, beyond what rounding may change.

    Args:
        logits: of a teacher, float32.
        stored: the same ones of the store.
        rounding: the share of a stored logit that rounding may change.
    """
    size = np.abs(stored)
    return float(((np.abs(logits - stored) - rounding * size) / (1 + size)).max())


def _rounding(plan: StorePlan) -> float:
    keep = plan.params.cache.keep_bits
    return 0.0 if keep is None else 2.0**-keep


def prune(project: Project, dry_run: bool) -> None:
    """Remove stores and begun stores that no current setting can use.

    What is being written stays.
    """
    wanted = _wanted(project)
    removed = 0
    for path in [*_stores(project.stores), *_begun(project)]:
        scratch = _writers(project, path)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            with cache.ScratchLock(scratch):
                removed += _prune_one(project, path, wanted, dry_run)
        except cache.StoreBusyError as error:
            say(f"left {path}: {error}")
    if not removed:
        say("nothing to remove")


def _prune_one(project: Project, path: Path, wanted: Wanted, dry_run: bool) -> bool:
    """Whether a store was useless, and so removed."""
    reason = _useless(project, path, wanted)
    if not reason:
        return False
    if path.suffix != COPY and not cache.is_logit_store(path):
        say(f"left {path}: it is not a logit store")
        return False
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    say(f"{'would remove' if dry_run else 'removed'} {path}: {reason}, {readable(size)}")
    if not dry_run:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    return True


def _useless(project: Project, path: Path, wanted: Wanted) -> str:
    """Why no run with the current settings could read a store, or go on with it.

    Empty if one could.
    """
    anatomy = _writers(project, path).stem
    if path.suffix == ".old":
        return "put aside by a run that was stopped"
    if path.suffix == COPY:
        return "a copy that was stopped"
    if anatomy not in wanted:
        return f"{anatomy} is not in data.anatomies"
    expected = dict(wanted[anatomy])
    if path.is_relative_to(project.scratch):
        attributes = cache.begun_attributes(path)
        if not attributes:
            return "its zarr.json does not say what it was begun for"
        expected["shard_frames"] = project.params.cache.shard_frames
    else:
        try:
            attributes = cache.open_store(path).attributes
        except cache.StoreError as error:
            return str(error)
    other = misfits(attributes, anatomy, expected)
    return f"written for another {', '.join(other)}" if other else ""


def _wanted(project: Project) -> Wanted:
    """What each anatomy's store must be for, as far as it can be known here."""
    try:
        digest = frames_digest(project.distillation_frames())
    except MtkdError:  # nothing is prepared
        digest = None
    return {
        anatomy: expected_parts(project.params, digest, known_checkpoint(project, anatomy))
        for anatomy in project.anatomies
    }


def _stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


def _begun(places: Places) -> list[Path]:
    """What was begun, what was put aside for a finished store, and what killed copies left."""
    scratch = places.begun_stores
    return sorted(
        [*_stores(scratch), *scratch.glob("*.zarr.old"), *places.stores.glob(f".*.zarr{COPY}")]
    )


def _writers(places: Places, path: Path) -> Path:
    """What a writer locks whose store lies, or lay, at a path: its scratch folder, or the copy."""
    return path if path.suffix == COPY else places.begun_stores / path.name.removesuffix(".old")


def is_path(name: str) -> bool:
    """Whether a store is named by its path and not by its anatomy."""
    return name.endswith(".zarr")


def _selected(places: Places, whose: list[str]) -> dict[str, Path]:
    """Path of each store that was named, or of all anatomies of params.yaml."""
    if whose and all(is_path(name) for name in whose):
        return {name: Path(name) for name in whose}
    project = load_project(places.root)
    project.require_anatomies(name for name in whose if not is_path(name))
    return {
        name: Path(name) if is_path(name) else project.store(name)
        for name in whose or project.anatomies
    }
