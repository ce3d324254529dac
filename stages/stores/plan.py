"""What a teacher's store will hold, and whether there is room for it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cache
from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MismatchError, MtkdError
from pipeline.files import nearest, require_writable
from pipeline.inference import InferenceInput, clean_inputs, view_inputs
from pipeline.models.network import Network
from pipeline.prepared import Frame, frames_digest
from pipeline.settings import Params
from stages.shared.console import readable, say
from stages.shared.project import Places, Project
from stages.stores.identity import expected_parts
from stages.stores.imported import is_imported


@dataclass(frozen=True)
class StorePlan:
    """What one store will hold.

    Attributes:
        anatomy: whose teacher.
        frames: training frames of all anatomies, and those without a mask.
        digest: of their list and pixels.
        project: settings, and where everything lies.
        checkpoint: what the store is bound to: the teacher's checkpoint.
    """

    anatomy: str
    frames: list[Frame]
    digest: str
    project: Project
    checkpoint: Path

    @property
    def params(self) -> Params:
        """All settings."""
        return self.project.params

    @property
    def path(self) -> Path:
        """Where the finished store lies."""
        return self.project.store(self.anatomy)

    @property
    def metrics(self) -> Path:
        """Where its size and its quality are written."""
        return self.project.metrics / "cache" / f"{self.anatomy}.json"

    def teacher(self) -> Network:
        """The teacher, in eval mode.

        Raises:
            MtkdError: there is none, or it is another anatomy's, or was trained at another size, or
                only its logits were imported.
        """
        if is_imported(self.checkpoint):
            raise MtkdError(
                f"{self.checkpoint} holds no weights, the logits of {self.anatomy}'s teacher were "
                f"imported as {self.path}: `mtkd import-teacher {self.anatomy} STORE` imports them "
                f"anew, `dvc repro -s -f train_teacher@{self.anatomy}` trains a teacher here"
            )
        network, card = load_checkpoint(self.checkpoint)
        size = self.params.data.image_size
        if card.anatomies != (self.anatomy,):
            decoders = ", ".join(card.anatomies)
            raise MismatchError(self.checkpoint, "list of decoders", decoders, self.anatomy)
        if card.image_size != size:
            raise MismatchError(self.checkpoint, "image_size", card.image_size, size)
        return network

    def inputs(self) -> list[InferenceInput]:
        """All frames of view 0, then all of view 1, ...; without views, the clean frames."""
        settings = self.params.cache
        size = self.params.data.image_size
        if not settings.views:
            return clean_inputs(self.frames)
        views = range(settings.views)
        return list(chain(*(view_inputs(self.frames, settings.seed, view, size) for view in views)))

    def batches(self, start: int, size: int) -> list[range]:
        """Batches of at most ``size`` positions, from a position on.

        None crosses a shard or a view, so that a resumed run computes the same batches.
        """
        total = len(self.frames) * max(1, self.params.cache.views)
        shard = self.params.cache.shard_frames
        return list(_batches(len(self.frames), total, shard, size, start))

    def grid(self, teacher: Network) -> tuple[int, int]:
        """Rows and columns of the teacher's logits."""
        height, width = (-(-side // teacher.output_stride) for side in self.params.data.image_size)
        return height, width

    def writer(self, grid: tuple[int, int]) -> cache.StoreWriter:
        """The store to be, where an earlier run left it.

        Args:
            grid: rows and columns of the logits.

        Raises:
            MtkdError: it cannot be written where it grows or where it ends.
            StoreError: as of ``cache.create_store``.
        """
        _require_places(self)
        settings = self.params.cache
        views = [{"view": v, "clean": False, "seed": settings.seed} for v in range(settings.views)]
        return cache.create_store(
            self.project.begun_store(self.anatomy),
            anatomy=self.anatomy,
            frames=[frame.id for frame in self.frames],
            grid=grid,
            image_size=self.params.data.image_size,
            identity_parts=expected_parts(self.params, self.digest, self.checkpoint),
            views=views or [{"view": 0, "clean": True}],
            shard_frames=settings.shard_frames,
            keep_bits=settings.keep_bits,
        )

    def raw_bytes(self, grid: tuple[int, int]) -> int:
        """Raw size of the store, before compression."""
        return cache.estimate(len(self.frames), max(1, self.params.cache.views), grid)


def make_plans(project: Project, anatomies: list[str]) -> list[StorePlan]:
    """One plan per anatomy, of all if none is named.

    Raises:
        MtkdError: an anatomy is not in data.anatomies, or nothing is prepared.
    """
    project.require_anatomies(anatomies)
    frames = project.distillation_frames()
    digest = frames_digest(frames)
    return [
        StorePlan(anatomy, frames, digest, project, project.teacher_checkpoint(anatomy))
        for anatomy in anatomies or project.anatomies
    ]


def was_imported(plan: StorePlan) -> bool:
    """Whether the logits came from elsewhere, so that nothing can be computed; said then."""
    imported = is_imported(plan.checkpoint)
    if imported:
        say(f"{plan.anatomy}: its teacher's logits were imported, {plan.path} is left as it is")
    return imported


def _require_places(plan: StorePlan) -> None:
    """A store can be written where it grows and where it ends.

    Raises:
        MtkdError: says which of them can't be.
    """
    project = plan.project
    for folder in (project.begun_stores, project.stores):
        require_writable(folder)
    if plan.path.is_mount():
        raise MtkdError(
            f"{plan.path} is a mount point, and a store can't replace that: mount "
            f"{project.stores} instead"
        )


def require_space(places: Places, raw: int, written: float = 0.0, kept: int = 0) -> None:
    """Refuse to begin what would not fit where stores grow, or where they end.

    Args:
        places: where that is.
        raw: bytes of all logits, before compression.
        written: the share of them that an earlier run left in scratch.
        kept: bytes that this share takes there, compressed.

    Raises:
        MtkdError: a disk has less room than the raw logits that are missing need.
    """
    missing = round(raw * (1 - written))
    needed = {places.stores: missing}
    if _device(places.begun_stores) != _device(places.stores):  # a finished store is copied
        needed = {places.begun_stores: missing, places.stores: missing + kept}
    for folder, size in needed.items():
        free = free_space(folder)
        if free < size:
            raise MtkdError(
                f"{folder} needs {readable(size)} before compression, the disk has "
                f"{readable(free)} free: make room, or lower cache.views"
            )


def free_space(folder: Path) -> int:
    """Bytes that the disk of a folder, or of where it will be, has free."""
    return shutil.disk_usage(nearest(folder)).free


def _device(folder: Path) -> int:
    return nearest(folder).stat().st_dev


def _batches(frames: int, total: int, shard: int, size: int, start: int) -> Iterator[range]:
    for view in range(0, total, frames):
        for first in range(view, view + frames, shard):
            if first >= start:
                yield from _pieces(first, min(first + shard, view + frames), size)


def _pieces(start: int, stop: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, stop)) for first in range(start, stop, size))
