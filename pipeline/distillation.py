"""The objective of the distilled student (paper, Equation 3).

L = sum over anatomies of L_CE + weight * L_KL. The paper prints a product of the two losses. This
is the sum, as in Shu et al. (2021), on whose implementation the paper says it builds.

With ``distill.reconcile`` the teachers are made to agree first, with what is known and with each
other: a teacher that has only seen frames with its anatomy finds it everywhere.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets import Sample
from pipeline.labels import targets
from pipeline.losses.distillation import balanced_class_wise_kl, channel_wise_kl, class_wise_kl
from pipeline.models.network import resize
from pipeline.settings import Distill
from pipeline.training import Objective, Terms

SURE = 6.0  # logit margin of what is known: a probability of 0.998
DIVERGENCES = {
    "pixels": channel_wise_kl,
    "classes": class_wise_kl,
    "classes_balanced": balanced_class_wise_kl,
}


def distilled(supervised: Objective, settings: Distill) -> Objective:
    """Add the KL divergence to the stored logits.

    Args:
        supervised: the objective without distillation.
        settings: temperature, weight, which softmax, and on which grid.
    """
    divergence = DIVERGENCES[settings.softmax]

    def terms(logits: Tensor, batch: Sample) -> Terms:
        student, teachers, valid = on_one_grid(
            logits, batch["teachers"], batch["valid"], settings.grid
        )
        if settings.reconcile:
            teachers = reconciled(teachers, targets(batch["organ"], batch["background"]))
        kl = divergence(student, teachers, settings.temperature, valid)
        cells = valid.sum().float().expand(teachers.shape[1])
        return supervised.terms(logits, batch) | {"kl_divergence": kl, "valid_cells": cells}

    def frames(batch: Sample) -> Terms:
        return {**supervised.frames(batch), "kl_divergence": batch["valid"].flatten(1).any(1).sum()}

    return Objective(terms, {**supervised.weights, "kl_divergence": settings.weight}, frames)


def on_one_grid(
    student: Tensor, teachers: Tensor, valid: Tensor, grid: Literal["stores", "student"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teachers, and the valid cells, all on one grid.

    On the stores' grid the student's logits are averaged over a cell, so what lies within one is
    left to the labels. On the student's, if that is finer, stored logits are interpolated, and what
    lies between valid cells alone is valid.

    Args:
        student: (B, N, 2, h, w).
        teachers: (B, N, 2, H, W).
        valid: (B, H, W) bool, cells of ``teachers``.
        grid: whose grid.
    """
    stored = (teachers.shape[-2], teachers.shape[-1])
    native = (student.shape[-2], student.shape[-1])
    if grid == "stores" or native[0] <= stored[0] or native[1] <= stored[1]:
        return resize(student, stored), teachers, valid
    invalid = (~valid)[:, None].float()
    invalid = F.interpolate(invalid, size=native, mode="bilinear", align_corners=False)[:, 0]
    return student, resize(teachers.float(), native), invalid == 0


def reconciled(teachers: Tensor, target: Tensor) -> Tensor:
    """Teachers' logits that agree with what is known, and with each other.

    First teachers are :func:`overruled`. Then no two anatomies' probabilities exceed 1 together, as
    mutual exclusivity wants: the surest teacher is believed, and with p its probability, the others
    get 1 - p at most.

    Args:
        teachers: (B, N, 2, h, w).
        target: (B, N, H, W) int64, see :func:`pipeline.labels.targets`.

    Returns:
        (B, N, 2, h, w) float32; the background's logits are unchanged.
    """
    background = teachers[:, :, 0].float()
    margins = overruled(teachers, target)
    surest = margins.amax(1, keepdim=True)
    margins = torch.where(margins < surest, torch.minimum(margins, -surest), margins)
    return torch.stack([background, background + margins], 2)


def overruled(teachers: Tensor, target: Tensor) -> Tensor:
    """Teachers' margins, where all of a cell is known to show an anatomy, or not to: at least sure.

    Args:
        teachers: (B, N, 2, h, w).
        target: (B, N, H, W) int64, see :func:`pipeline.labels.targets`.

    Returns:
        (B, N, h, w) float32.
    """
    margins = teachers[:, :, 1].float() - teachers[:, :, 0].float()
    grid = (teachers.shape[-2], teachers.shape[-1])
    is_anatomy, is_background = (
        F.adaptive_avg_pool2d((target == value).float(), grid) == 1 for value in (1, 0)
    )
    margins = torch.where(is_background, margins.clamp(max=-SURE), margins)
    return torch.where(is_anatomy, margins.clamp(min=SURE), margins)
