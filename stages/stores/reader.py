"""The stores of N teachers as one reader, checked against what is on disk now."""

from collections.abc import Sequence

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
        self.stores, self.views, self.view_seed = list(stores), views, view_seed

    def read(self, frame: str, view: int, pixels: int) -> NDArray[np.float16]:
        """Logits (N, 2, h, w) of all teachers on one frame.

        Raises:
            MtkdError: the frame no longer has the pixels that the teachers saw.
            StoreError: a store lacks the frame, or what it holds is damaged.
        """
        for one in self.stores:
            if one.pixels(frame, view) != pixels:
                raise MtkdError(
                    f"{one.path} was written for other pixels of {frame} (view {view}): run "
                    "`dvc repro -s -f cache_logits`"
                )
        return np.stack([one.read(frame, view) for one in self.stores])


def open_stores(project: Project) -> TeacherLogits:
    """Open every teacher's store and refuse what does not belong to these frames, settings and checkpoints.

    Raises:
        MtkdError: a store was written for something else; says what differs and which stage to run.
        StoreError: a store is missing, incomplete or damaged.
    """
    params, anatomies = project.params, project.anatomies
    frames = project.distillation_frames()
    digest = frames_digest(frames)
    stores = [open_store(project.store(anatomy)) for anatomy in anatomies]
    lines = [
        misfit_line(
            one, anatomy, expected_parts(params, digest, known_checkpoint(project, anatomy))
        )
        for anatomy, one in zip(anatomies, stores, strict=True)
    ]
    if any(lines):
        raise MtkdError(
            "\n".join([*filter(None, lines), *_other_lists(stores, [frame.id for frame in frames])])
        )
    grids = {one.shape[-2:] for one in stores}
    if len(grids) > 1:
        raise MtkdError(
            f"the stores have different grids {sorted(grids)}: run `dvc repro cache_logits`"
        )
    return TeacherLogits(stores, params.cache.views, params.cache.seed)


def _other_lists(stores: Sequence[Store], wanted: Sequence[str]) -> list[str]:
    """A line for each way in which stores hold other frames than are wanted, naming a store and a frame."""
    found: dict[str, list[Store]] = {}
    for one in stores:
        for verb, frames in (
            ("lacks", {*wanted} - {*one.frames}),
            ("has other", {*one.frames} - {*wanted}),
        ):
            if frames:
                found.setdefault(f"{verb} frames, {min(frames)} first of {len(frames)}", []).append(
                    one
                )
    others = {
        what: f", like {len(these) - 1} other stores" if these[1:] else ""
        for what, these in found.items()
    }
    return [f"{these[0].path} {what}{others[what]}" for what, these in found.items()]
