"""The objective of the distilled student: L = sum over anatomies of L_CE + weight * L_KL (paper, Equation 3).

The paper prints a product of the two losses. This is the sum, as in Shu et al. (2021), on whose implementation the
paper says it builds.
"""

from torch import Tensor

from pipeline.datasets import Sample
from pipeline.losses.distillation import balanced_class_wise_kl, channel_wise_kl, class_wise_kl
from pipeline.models.network import resize
from pipeline.settings import Distill
from pipeline.training import Objective, Terms

DIVERGENCES = {
    "pixels": channel_wise_kl,
    "classes": class_wise_kl,
    "classes_balanced": balanced_class_wise_kl,
}


def distilled(supervised: Objective, settings: Distill) -> Objective:
    """Add the KL divergence to the stored logits, computed on their grid.

    Args:
        supervised: the objective without distillation.
        settings: temperature, weight and which softmax.
    """
    divergence = DIVERGENCES[settings.softmax]

    def terms(logits: Tensor, batch: Sample) -> Terms:
        teachers = batch["teachers"]
        student = resize(logits, (teachers.shape[-2], teachers.shape[-1]))
        kl = divergence(student, teachers, settings.temperature, batch["valid"])
        cells = batch["valid"].sum().float().expand(teachers.shape[1])
        return supervised.terms(logits, batch) | {"kl_divergence": kl, "valid_cells": cells}

    def frames(batch: Sample) -> Terms:
        return supervised.frames(batch) | {"kl_divergence": batch["valid"].flatten(1).any(1).sum()}

    return Objective(terms, {**supervised.weights, "kl_divergence": settings.weight}, frames)
