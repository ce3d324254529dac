"""The two objectives of stage 2 (paper, section 2).

Partial-label cross-entropy and channel-wise KL divergence.
"""

from pipeline.losses.distillation import balanced_class_wise_kl, channel_wise_kl, class_wise_kl
from pipeline.losses.partial_labels import IGNORE, partial_label_cross_entropy, partial_targets

__all__ = [
    "IGNORE",
    "balanced_class_wise_kl",
    "channel_wise_kl",
    "class_wise_kl",
    "partial_label_cross_entropy",
    "partial_targets",
]
