"""Prepared frames as tensors.

Their order and augmentations depend on (seed, epoch, frame id) alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.augmentation import (
    Augmentation,
    augment_frame,
    fingerprint,
    sample,
    valid_cells,
    warp_label,
    warp_logits,
)
from pipeline.labels import NOT_LABELLED, load_labels
from pipeline.prepared import Frame, load_frame

Key = tuple[int, int]  # epoch, position of the frame


class Sample(TypedDict, total=False):
    """One frame, or a batch of B frames with a leading dimension.

    Attributes:
        frame: (3, H, W) uint8 RGB.
        organ: (H, W) int16, which anatomy a pixel is known to show; see
            :class:`pipeline.labels.FrameLabels`.
        background: (N,) bool, the decoders to which a pixel of no known anatomy is background.
        labelled: (N,) bool, the decoders whose anatomies the frame is labelled for.
        position: () int64, index of the frame in its data set.
        teachers: (N, 2, h, w) float32 stored logits, moved as the frame was; only with soft
            targets.
        valid: (h, w) bool, cells of ``teachers`` that lie inside the original frame; only with soft
            targets.
    """

    frame: Tensor
    organ: Tensor
    background: Tensor
    labelled: Tensor
    position: Tensor
    teachers: Tensor
    valid: Tensor


class SoftTargets(Protocol):
    """What a student needs from the stores of N teachers; ``stages`` hands one in."""

    @property
    def views(self) -> int:
        """Number of stored views; 0 = the clean frame, to be warped by the loader."""

    @property
    def view_seed(self) -> int:
        """Seed of the stored views."""

    def read(self, frame: str, view: int, pixels: int) -> NDArray[np.float16]:
        """Logits (N, 2, h, w) of all teachers on one frame.

        Refuses if their input was other pixels.

        Args:
            frame: its id.
            view: 0, 1, ... of the stored views; 0 for the clean frame.
            pixels: :func:`pipeline.augmentation.fingerprint` of the input.
        """


class FrameDataset(Dataset[Sample]):
    """Prepared frames with what is known of them.

    Args:
        frames: the frames, in order.
        anatomies: the N decoders, in order.
        augment: seed of the augmentation, or None for clean frames.
        soft_targets: stored logits of the teachers, or None.
        maps: whether label maps beside masks are used, too.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        anatomies: Sequence[str],
        augment: int | None = None,
        soft_targets: SoftTargets | None = None,
        *,
        maps: bool = True,
    ) -> None:
        self.maps = maps
        self.frames = list(frames)
        self.anatomies = list(anatomies)
        self.augment = augment
        self.soft_targets = soft_targets

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Key) -> Sample:
        epoch, position = key
        frame = self.frames[position]
        clean = load_frame(frame.image)
        augmentation = self._augmentation(epoch, frame, clean.shape[:2])
        pixels = augment_frame(clean, augmentation)
        labels = load_labels(frame, self.anatomies, clean.shape[:2], maps=self.maps)
        organ = warp_label(labels.organ, augmentation.affine, NOT_LABELLED)
        item = Sample(
            frame=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            organ=torch.from_numpy(organ),
            background=torch.from_numpy(labels.background),
            labelled=torch.from_numpy(labels.labelled),
            position=torch.tensor(position),
        )
        if self.soft_targets is not None:
            item |= _soft_targets(self.soft_targets, frame.id, epoch, augmentation, clean, pixels)
        return item

    def _augmentation(self, epoch: int, frame: Frame, size: tuple[int, int]) -> Augmentation:
        if self.soft_targets is not None and self.soft_targets.views:
            return sample(
                self.soft_targets.view_seed, epoch % self.soft_targets.views, frame.id, size
            )
        if self.augment is None:
            return Augmentation()
        return sample(self.augment, epoch, frame.id, size)


def _soft_targets(
    reader: SoftTargets,
    frame: str,
    epoch: int,
    augmentation: Augmentation,
    clean: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
) -> Sample:
    """The teachers' logits on the augmented frame.

    They are replayed for a stored view, and else warped from the clean frame's.
    """
    if reader.views:
        replayed = reader.read(frame, epoch % reader.views, fingerprint(pixels))
        logits = replayed.astype(np.float32)
    else:
        logits = warp_logits(reader.read(frame, 0, fingerprint(clean)), augmentation.affine)
    valid = valid_cells(augmentation.affine, logits.shape[-2:])
    return Sample(teachers=torch.from_numpy(logits), valid=torch.from_numpy(valid))


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of every batch.

    Attributes:
        rank: which of the processes.
        ranks: how many there are.
        pieces: in how many pieces it computes its share, one after another.
        least: frames that batch norm needs in a piece: one, if the processes compute its statistics
            together.
    """

    rank: int = 0
    ranks: int = 1
    pieces: int = 1
    least: int = 2

    def of(self, batch: Sequence[int] | NDArray[np.int64]) -> list[list[int]]:
        """This process's pieces of a batch.

        All pieces differ by at most one frame, and the last ones may be empty.
        """
        pieces = np.array_split(batch, self.ranks * self.pieces)
        first = self.rank * self.pieces
        return [piece.tolist() for piece in pieces[first : first + self.pieces]]


class EpochBatches(Sampler[list[Key]]):
    """The shuffled batches of one epoch at a time, in pieces; set ``epoch`` before iterating.

    Batch norm over globally pooled features needs two frames, so a last batch of one frame is
    dropped, and a piece of fewer than the share's least is filled up with other frames of its
    batch. :meth:`sizes` tells how many frames of each piece are its own; the others must not count
    in the loss.

    Args:
        frames: number of frames that every epoch has.
        batch_size: frames per batch, over all processes.
        seed: of the order.
        share: which pieces of every batch; by default it is whole.
        others: number of frames after these, of which each epoch has some.
        drawn: how many.
    """

    def __init__(
        self,
        frames: int,
        batch_size: int,
        seed: int,
        share: Share | None = None,
        *,
        others: int = 0,
        drawn: int = 0,
    ) -> None:
        self.always = frames
        self.others = others
        self.frames = frames + min(drawn, others)
        self.batch_size = batch_size
        self.seed = seed
        self.share = share or Share()
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Number of batches."""
        full, rest = divmod(self.frames, self.batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for step in range(self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            for piece in self.share.of(batch):
                others = [i for i in batch if i not in piece]
                lacking = max(0, self.share.least - len(piece))
                yield [(self.epoch, i) for i in piece + others[:lacking]]

    def _order(self) -> NDArray[np.int64]:
        """The positions of the epoch's frames, in the order of its batches."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.frames)
        if self.others:
            # Those of the other frames that this epoch has stand for the last positions.
            drawn = rng.permutation(self.others)[: self.frames - self.always] + self.always
            order = np.concatenate([np.arange(self.always), drawn])[order]
        return order

    def __len__(self) -> int:
        return self.steps * self.share.pieces

    def whole(self) -> list[int]:
        """For each batch, its frames over all processes."""
        return [
            min(self.frames - step * self.batch_size, self.batch_size) for step in range(self.steps)
        ]

    def sizes(self) -> list[list[int]]:
        """For each batch, the frames of each piece without those that fill it up."""
        batches = [range(frames) for frames in self.whole()]
        return [list(map(len, self.share.of(batch))) for batch in batches]


def clean_batches(frames: int, batch_size: int, share: Share) -> list[list[Key]]:
    """Batches of keys in order, of every frame that falls to one process.

    No frame comes twice, and none is left out.
    """
    keys = [(0, i) for i in range(share.rank, frames, share.ranks)]
    return [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
