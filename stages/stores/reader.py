"""The stores of N teachers as one reader, checked against what is on disk now."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import Store, open_store
from pipeline.errors import MtkdError
from pipeline.prepared import frames_digest
from stages.shared.project import Project
from stages.stores.identity import expected_parts, known_checkpoint, misfit_line


class TeacherLogits:
    """The logits of all teachers on a frame, as ``pipeline.datasets.SoftTargets`` asks for them."""

    def __init__(self, stores: Sequence[Store], views: int, view_seed: int) -> None:
        self.stores = list(stores)
        self.views = views
        self.view_seed = view_seed

    def read(self, frame: str, view: int, pixels: int) -> NDArray[np.float16]:
        """Logits (N, 2, h, w) of all teachers on one frame.

        Raises:
            MtkdError: the frame no longer has the pixels that the teachers saw.
            StoreError: a store lacks the frame, or what it holds is damaged.
        """
        for store in self.stores:
            if store.pixels(frame, view) != pixels:
                raise MtkdError(
                    f"{store.path} was written for other pixels of {frame} (view {view}): run "
                    "`dvc repro -s -f cache_logits`"
                )
        return np.stack([store.read(frame, view) for store in self.stores])

    def files(self) -> list[Path]:
        """Every file of the stores."""
        paths = chain.from_iterable(store.path.rglob("*") for store in self.stores)
        return [path for path in paths if path.is_file()]


def open_stores(project: Project, digest: str | None = None) -> TeacherLogits:
    """Open every teacher's store; refuse stores of other frames, settings and checkpoints.

    Args:
        project: settings, and where stores, checkpoints and prepared frames lie.
        digest: of the distillation frames if it is known already, see ``frames_digest``.

    Raises:
        MtkdError: a store was written for something else; says what differs and which stage to run.
        StoreError: a store is missing, incomplete or damaged.
    """
    frames = project.distillation_frames()
    digest = digest or frames_digest(frames)
    stores = [open_store(project.store(anatomy)) for anatomy in project.anatomies]
    lines = list(_misfit_lines(project, digest, stores))
    if lines:
        raise MtkdError("\n".join([*lines, *_other_lists(stores, [frame.id for frame in frames])]))
    grids = {store.shape[-2:] for store in stores}
    if len(grids) > 1:
        raise MtkdError(
            f"the stores have different grids {sorted(grids)}: run `dvc repro cache_logits`"
        )
    settings = project.params.cache
    return TeacherLogits(stores, settings.views, settings.seed)


def _misfit_lines(project: Project, digest: str, stores: Sequence[Store]) -> Iterator[str]:
    """A line for each store that was written for something else."""
    for anatomy, store in zip(project.anatomies, stores, strict=True):
        checkpoint = known_checkpoint(project, anatomy)
        line = misfit_line(store, anatomy, expected_parts(project.params, digest, checkpoint))
        if line:
            yield line


def _other_lists(stores: Sequence[Store], wanted: Sequence[str]) -> Iterator[str]:
    """A line for each way in which stores hold other frames than are wanted.

    Each names a store and a frame.
    """
    holders: dict[str, list[Store]] = {}
    for store in stores:
        for difference in _list_differences(store.frames, wanted):
            holders.setdefault(difference, []).append(store)
    for difference, alike in holders.items():
        others = f", like {len(alike) - 1} other stores" if alike[1:] else ""
        yield f"{alike[0].path} {difference}{others}"


def _list_differences(frames: Iterable[str], wanted: Iterable[str]) -> Iterator[str]:
    """Which frames a store lacks, and which it has that are not wanted."""
    stored = set(frames)
    expected = set(wanted)
    for verb, different in (("lacks", expected - stored), ("has other", stored - expected)):
        if different:
            yield f"{verb} frames, {min(different)} first of {len(different)}"
