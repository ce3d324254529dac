"""Cross-entropy for binary sub-data sets with mutual exclusivity.

Kolbinger et al. 2023; paper, section 2, stage 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.labels import NO_ANATOMY, NOT_LABELLED, UNKNOWN, own_decoder, targets

IGNORE = UNKNOWN


def partial_targets(label: Tensor, anatomy: Tensor, decoders: int) -> Tensor:
    """What each decoder may learn from frames that are labelled for one anatomy only.

    The frame's own decoder gets the full binary mask. An organ's pixel is no other organ's, so
    every other decoder sees those pixels as background; whether the rest of the frame holds its own
    organ is unknown, so it is ignored.

    Args:
        label: (B, H, W) int64, 1 = anatomy, 0 = background, -1 = not known (outside the original
            frame).
        anatomy: (B,) int64, index of the decoder that each frame is labelled for.
        decoders: number of decoders N.

    Returns:
        (B, N, H, W) int64 with 0 = background, 1 = anatomy, -1 = ignore.
    """
    background = torch.where(label == 0, NO_ANATOMY, NOT_LABELLED)
    organ = torch.where(label == 1, anatomy[:, None, None], background)
    return targets(organ, own_decoder(anatomy, decoders))


def partial_label_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Equation 1 per decoder, over the pixels that the decoder may learn from.

    The sum over valid pixels is scaled by N / (B * H * W). That is linear in frames, so
    micro-batches and ranks add up to the large batch, and on average the frames of a decoder's own
    anatomy weigh 1.

    Args:
        logits: (B, N, 2, H, W) float; computed in float32 whatever the dtype.
        target: (B, N, H, W) int64, 0 = background, 1 = anatomy, -1 = ignore.
        class_weights: (N, 2) weights of background and anatomy, or None for the paper's standard
            cross-entropy.
        pixel_weights: (B, N, H, W) weights of pixels, or None.

    Returns:
        (N,) float32, the loss of each decoder; 0 where a decoder has no valid pixel.
    """
    batch, decoders, _, height, width = logits.shape
    # Two classes: the cross-entropy is softplus of the other logit's margin.
    margin = logits[:, :, 1].float() - logits[:, :, 0].float()
    loss = F.softplus(torch.where(target == 1, -margin, margin))
    if class_weights is not None:
        background, anatomy = class_weights.to(loss)[None, :, :, None, None].unbind(2)
        loss = loss * torch.where(target == 1, anatomy, background)
    if pixel_weights is not None:
        loss = loss * pixel_weights
    loss = torch.where(target == IGNORE, 0.0, loss)
    return loss.sum(dim=(0, 2, 3)) * (decoders / (batch * height * width))
