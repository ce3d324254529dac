"""What an exported graph computes: from a frame to masks, to a label map, or to logit margins."""

from typing import Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.decision import enlarged, label_map, masks_of_one_organ, one_organ
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network

# Masks (1, N, H, W) uint8 of 0 and 1; a label map (1, H, W) uint8, 0 = none, i = the i-th anatomy;
# margins (1, N + 1, h, w) float32 on the network's own grid, of which the first plane is 0: none.
Gives = Literal["masks", "labels", "margins"]
# A frame (1, 3, H, W) or (1, H, W, 3) uint8, or (1, H, W, 3) float32 of 0..255; RGB.
Layout = Literal["nchw", "nhwc", "nhwc-float32"]
GIVES: tuple[Gives, ...] = get_args(Gives)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class Segmenter(nn.Module):
    """Frames (1, 3, H, W) uint8 RGB to masks (1, N, H, W) uint8, 0 or 1.

    One map per anatomy is upsampled, the difference of its two logits: that is the arg max, for
    half the work.

    Args:
        network: in eval mode.
        frame_size: (H, W) of the frames.
        network_size: (H, W) at which the network sees them.
        one_organ: whether a pixel belongs to one anatomy at most (:mod:`pipeline.decision`); in a
            label map it does in any case.
        gives: what comes out, see :data:`Gives`.
        layout: what goes in, see :data:`Layout`.
    """

    def __init__(
        self,
        network: Network | Frozen,
        frame_size: tuple[int, int],
        network_size: tuple[int, int],
        *,
        one_organ: bool = False,
        gives: Gives = "masks",
        layout: Layout = "nchw",
    ) -> None:
        super().__init__()
        self.one_organ = one_organ or gives == "labels"
        self.network = network
        self.frame_size = frame_size
        self.network_size = network_size
        self.gives = gives
        self.layout = layout

    def forward(self, frame: Tensor) -> Tensor:
        """What the class says of a frame.

        While no gradients are wanted masks are computed one after another: so what is upsampled
        stays in the processor's cache.
        """
        margin = self._native(frame)
        if self.gives == "margins":
            return torch.cat([torch.zeros_like(margin[:, :1]), margin], dim=1).float()
        at_once = torch.is_grad_enabled() or margin.device.type != "cpu"
        if self.gives == "labels":
            labels = one_organ(self._full(margin)) if at_once else self._labels(margin)
            return labels.to(torch.uint8)
        if at_once:
            return self.decided(self._full(margin)).to(torch.uint8)
        if self.one_organ:
            numbers = torch.arange(1, margin.shape[1] + 1, dtype=torch.uint8)[:, None, None]
            return (self._labels(margin)[:, None] == numbers).to(torch.uint8)
        masks = [(self._full(part) > 0).to(torch.uint8) for part in margin.split(1, dim=1)]
        return torch.cat(masks, dim=1)

    def decided(self, margins: Tensor) -> Tensor:
        """Masks (1, N, H, W) bool from margins (1, N, H, W)."""
        return masks_of_one_organ(margins) if self.one_organ else margins > 0

    def _labels(self, margin: Tensor) -> Tensor:
        """As :func:`pipeline.decision.one_organ`, with one map in the cache at a time."""
        largest = torch.zeros(1, 1, *self.frame_size)
        organ = torch.zeros(1, 1, *self.frame_size, dtype=torch.uint8)
        for number, part in enumerate(margin.split(1, dim=1), start=1):
            full = self._full(part)
            organ.masked_fill_(full > largest, number)
            torch.maximum(largest, full, out=largest)
        return organ[:, 0]

    def margins(self, frame: Tensor) -> Tensor:
        """By how much the anatomy's logit exceeds the background's, (1, N, H, W)."""
        return self._full(self._native(frame))

    def _native(self, frame: Tensor) -> Tensor:
        """The margins on the network's own grid, (1, N, h, w)."""
        planes = frame if self.layout == "nchw" else frame.permute(0, 3, 1, 2)
        pixels = planes.float()
        if self.frame_size != self.network_size:
            size = self.network_size
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return self.network.margins(pixels)

    def _full(self, margin: Tensor) -> Tensor:
        return F.interpolate(margin, size=self.frame_size, mode="bilinear", align_corners=False)


def as_input(frame: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8] | NDArray[np.float32]:
    """A frame (H, W, 3) as a graph of this layout takes it."""
    if layout == "nchw":
        return as_batch(frame)
    batch = np.ascontiguousarray(frame[None])
    return batch.astype(np.float32) if layout == "nhwc-float32" else batch


def resized(
    pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR
) -> NDArray[np.uint8]:
    """A frame or label at another size (H, W)."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=interpolation))


def masks_at(masks: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks (N, h, w) at a frame's size (H, W)."""
    if masks.shape[1:] == size:
        return masks
    back = [resized(mask.astype(np.uint8), size, cv2.INTER_NEAREST_EXACT) for mask in masks]
    return np.stack(back).astype(bool)


def as_batch(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) as (1, 3, H, W)."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None])


def as_masks(
    output: NDArray[np.uint8] | NDArray[np.float32],
    gives: Gives,
    anatomies: int,
    frame_size: tuple[int, int],
    *,
    one_organ: bool,
) -> NDArray[np.bool_]:
    """Masks (N, H, W) from what a graph gives.

    Args:
        output: see :data:`Gives`.
        gives: which of them it is.
        anatomies: N.
        frame_size: (H, W).
        one_organ: of margins, whether a pixel belongs to one anatomy at most.
    """
    if gives == "masks":
        return output[0].astype(bool)
    if gives == "margins":
        margins = output[0, 1:].astype(np.float32, copy=False)
        if not one_organ:
            return np.stack([enlarged(plane, frame_size) > 0 for plane in margins])
        output = label_map(margins, frame_size)[None]
    return output == np.arange(1, anatomies + 1, dtype=np.uint8)[:, None, None]
