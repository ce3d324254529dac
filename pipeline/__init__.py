"""How it is computed: data, augmentation, networks, losses, training, inference and metrics.

Everything here takes arrays, tensors, paths and typed settings as arguments. Nothing here reads
params.yaml or knows DVC (that is ``stages``), and nothing here knows how logits are stored (that is
``cache``).
"""
