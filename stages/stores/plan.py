"""What one teacher's store will hold, and whether it can be written; around the writing of every store."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cache
from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import nearest, require_writable, write_json
from pipeline.inference import Question, clean_questions, view_questions
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.prepared import Frame, frames_digest
from pipeline.settings import Params
from stages.shared.console import readable, say
from stages.shared.paths import METRICS, SCRATCH, STORES, store, taught_frames, teacher_checkpoint
from stages.stores.identity import expected_parts
from stages.stores.imported import is_imported
from stages.stores.quality import augmentation_gap, rounding_error


@dataclass(frozen=True)
class StorePlan:
    """What one store will hold.

    Attributes:
        anatomy: whose teacher.
        frames: training frames of all anatomies, and those without a label.
        digest: of their list and pixels.
        params: all settings.
    """

    anatomy: str
    frames: list[Frame]
    digest: str
    params: Params

    def teacher(self) -> Network:
        """The teacher, in eval mode.

        Raises:
            MtkdError: there is none, or it is another anatomy's, or was trained at another size, or
                only its answers were imported.
        """
        checkpoint = teacher_checkpoint(self.anatomy)
        if is_imported(checkpoint):
            raise MtkdError(
                f"{checkpoint} holds no weights, the answers of {self.anatomy}'s teacher were "
                "imported as "
                f"{store(self.anatomy)}: `mtkd import-teacher {self.anatomy} STORE` imports them "
                "anew, "
                f"`dvc repro -s -f train_teacher@{self.anatomy}` trains a teacher here"
            )
        network, card = load_checkpoint(checkpoint, f"train_teacher@{self.anatomy}")
        if card.anatomies != (self.anatomy,):
            raise MtkdError(
                f"{checkpoint} holds the decoders {', '.join(card.anatomies)}, expected "
                f"{self.anatomy} alone: "
                f"run `dvc repro -s -f train_teacher@{self.anatomy}`"
            )
        if card.image_size != self.params.data.image_size:
            raise MtkdError(
                f"{checkpoint} was trained at {card.image_size}: run `dvc repro "
                f"train_teacher@{self.anatomy}`"
            )
        return network

    def questions(self) -> list[Question]:
        """All frames of view 0, then all of view 1, ...; without views, the clean frames."""
        settings, size = self.params.cache, self.params.data.image_size
        if not settings.views:
            return clean_questions(self.frames)
        return list(
            chain(
                *(
                    view_questions(self.frames, settings.seed, v, size)
                    for v in range(settings.views)
                )
            )
        )

    def grid(self, teacher: Network) -> tuple[int, int]:
        """Rows and columns of the teacher's logits."""
        height, width = (-(-n // teacher.output_stride) for n in self.params.data.image_size)
        return height, width

    def writer(self, grid: tuple[int, int], checkpoint: Path | None = None) -> cache.StoreWriter:
        """The store to be, where an earlier run left it.

        Args:
            grid: rows and columns of the logits.
            checkpoint: what it is bound to; by default the teacher in its place.

        Raises:
            MtkdError: it cannot be written where it grows or where it ends.
            StoreError: as of ``cache.create_store``.
        """
        _require_places(self.anatomy)
        settings = self.params.cache
        views = [{"view": v, "clean": False, "seed": settings.seed} for v in range(settings.views)]
        return cache.create_store(
            SCRATCH / store(self.anatomy),
            anatomy=self.anatomy,
            frames=[frame.id for frame in self.frames],
            grid=grid,
            image_size=self.params.data.image_size,
            identity_parts=expected_parts(
                self.params, self.digest, checkpoint or teacher_checkpoint(self.anatomy)
            ),
            views=views or [{"view": 0, "clean": True}],
            shard_frames=settings.shard_frames,
            keep_bits=settings.keep_bits,
        )

    def raw_bytes(self, grid: tuple[int, int]) -> int:
        """Raw size of the store, before compression."""
        return cache.estimate(len(self.frames), max(1, self.params.cache.views), grid)


def make_plans(anatomies: list[str], params: Params) -> list[StorePlan]:
    """One plan per anatomy, of all if none is named.

    Raises:
        MtkdError: an anatomy is not in data.anatomies, or nothing is prepared.
    """
    unknown = sorted(set(anatomies) - set(params.data.anatomies))
    if unknown:
        raise MtkdError(
            f"not in data.anatomies: {', '.join(unknown)}; there: "
            f"{', '.join(params.data.anatomies)}"
        )
    frames = taught_frames(params.data.anatomies)
    digest = frames_digest(frames)
    return [
        StorePlan(anatomy, frames, digest, params) for anatomy in anatomies or params.data.anatomies
    ]


def was_imported(plan: StorePlan) -> bool:
    """Whether there is no teacher to ask; said then."""
    imported = is_imported(teacher_checkpoint(plan.anatomy))
    if imported:
        say(
            f"{plan.anatomy}: its teacher's answers were imported, {store(plan.anatomy)} is left "
            "as it is"
        )
    return imported


def finish(plan: StorePlan, teacher: Network, machine: Machine) -> None:
    """Write the metrics of a store that is in its place, and say how large it is."""
    stats, written = cache.stats(store(plan.anatomy)), cache.open_store(store(plan.anatomy))
    stats |= augmentation_gap(teacher, plan.frames, written, plan.params, machine)
    if plan.params.cache.keep_bits is not None:
        stats |= rounding_error(teacher, plan.frames, plan.params, machine)
    write_json(METRICS / "cache" / f"{plan.anatomy}.json", stats)
    answered = stats["frames"] * stats["views"]
    say(f"{plan.anatomy}: {answered} answers -> {store(plan.anatomy)}, {readable(stats['bytes'])}")


def _require_places(anatomy: str) -> None:
    """A store can be written where it grows and where it ends.

    Raises:
        MtkdError: says which of them can't be.
    """
    for folder in (SCRATCH / STORES, STORES):
        require_writable(folder)
    if store(anatomy).is_mount():
        raise MtkdError(
            f"{store(anatomy)} is a mount point, and a store can't replace that: mount {STORES} "
            "instead"
        )


def require_space(raw: int, written: float = 0.0, kept: int = 0) -> None:
    """Refuse to begin what would not fit where stores grow, or where they end.

    Args:
        raw: bytes of all logits, before compression.
        written: the share of them that an earlier run left in scratch.
        kept: bytes that this share takes there, compressed.

    Raises:
        MtkdError: a disk has less room than the raw logits that are missing need.
    """
    missing = round(raw * (1 - written))
    needed = {STORES: missing}
    if _device(SCRATCH / STORES) != _device(STORES):  # a finished store is copied
        needed = {SCRATCH / STORES: missing, STORES: missing + kept}
    for folder, size in needed.items():
        free = free_space(folder)
        if free < size:
            raise MtkdError(
                f"{folder} needs {readable(size)} before compression, the disk has "
                f"{readable(free)} free: make room, "
                "or lower cache.views"
            )


def free_space(folder: Path) -> int:
    """Bytes that the disk of a folder, or of where it will be, has free."""
    return shutil.disk_usage(nearest(folder)).free


def _device(folder: Path) -> int:
    return nearest(folder).stat().st_dev


def make_batches(frames: int, total: int, shard: int, batch: int, done: int) -> list[range]:
    """Batches from position ``done`` on; none crosses a shard or a view, so a resumed run asks the same batches."""

    def pieces(start: int, stop: int, size: int) -> Iterator[range]:
        return (range(i, min(i + size, stop)) for i in range(start, stop, size))

    shards = chain(*(pieces(view, view + frames, shard) for view in range(0, total, frames)))
    return list(chain(*(pieces(s.start, s.stop, batch) for s in shards if s.start >= done)))
