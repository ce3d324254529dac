"""What stored logits lose: to being warped instead of computed anew, and to rounding."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import Store
from cache.compression import rounded
from pipeline.augmentation import IDENTITY, Augmentation, sample, valid_cells, warp_logits
from pipeline.inference import InferenceInput, clean_inputs, predictions
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.prepared import Frame
from pipeline.settings import Cache, Params

# The teacher runs again on one frame in a hundred, at least and at most:
FEWEST = 16
MOST = 32


def run_inference(
    teacher: Network, inputs: Sequence[InferenceInput], settings: Cache, machine: Machine
) -> NDArray[np.float32]:
    """A teacher's logits (n, 2, h, w) on n inputs, in batches of ``cache.batch_size``."""
    starts = range(0, len(inputs), settings.batch_size)
    batches = [range(i, min(i + settings.batch_size, len(inputs))) for i in starts]
    computed = predictions(teacher, inputs, batches, settings.precision, machine)
    return np.concatenate([logits[:, 0] for logits, _ in computed])


def augmentation_gap(
    teacher: Network, frames: Sequence[Frame], store: Store, params: Params, machine: Machine
) -> dict[str, Any]:
    """How far the student's target lies from the teacher's logits on an augmented frame.

    It is measured on frames spread over the whole set, each with the first of its transforms that
    moves it.

    ``geometry``: the clean frame's logits, warped, against those of the warped frame. ``full``:
    against those of the frame as the student sees it, warped and recoloured. ``views``: the latter
    logits themselves, as a stored view holds them.

    Returns:
        Under ``augmentation_gap`` for each of the three: ``kl``, the mean over valid cells of
            KL(teacher || target) in nats, and ``disagreement``, the percentage of valid cells where
            the larger of the two logits is another. Under ``augmentation_gap_frames``, the number
            of frames that the teacher ran on again.
    """
    some = _spread(frames)
    augmentations = [_moving(params.cache.seed, frame.id, params.data.image_size) for frame in some]

    def infer(applied: Sequence[Augmentation]) -> NDArray[np.float32]:
        return run_inference(
            teacher,
            [InferenceInput(*item) for item in zip(some, applied, strict=True)],
            params.cache,
            machine,
        )

    if params.cache.views:
        clean = _as_stored(
            run_inference(teacher, clean_inputs(some), params.cache, machine),
            params.cache.keep_bits,
        )
    else:
        clean = np.stack([store.read(frame.id) for frame in some]).astype(np.float32)
    warped = np.stack(
        [warp_logits(z, item.affine) for z, item in zip(clean, augmentations, strict=True)]
    )
    valid = np.stack([valid_cells(item.affine, clean.shape[-2:]) for item in augmentations])
    seen = infer(augmentations)
    return {
        "augmentation_gap": {
            "geometry": _gap(
                infer([Augmentation(item.affine) for item in augmentations]), warped, valid
            ),
            "full": _gap(seen, warped, valid),
            "views": _gap(seen, _as_stored(seen, params.cache.keep_bits), valid),
        },
        "augmentation_gap_frames": len(some),
    }


def _moving(seed: int, frame: str, size: tuple[int, int]) -> Augmentation:
    samples = (sample(seed, number, frame, size) for number in count())
    return next(augmentation for augmentation in samples if augmentation.affine != IDENTITY)


def rounding_error(
    teacher: Network, frames: Sequence[Frame], params: Params, machine: Machine
) -> dict[str, float]:
    """What ``cache.keep_bits`` costs.

    Returns:
        The largest change of a probability, and the mean KL divergence in nats.
    """
    exact = run_inference(teacher, clean_inputs(_spread(frames)), params.cache, machine)
    stored = _as_stored(exact, params.cache.keep_bits)
    p = _probability(exact)
    q = _probability(stored)
    return {
        "rounding_probability": _short(np.abs(p - q).max()),
        "rounding_kl": _short(_divergence(p, q).mean()),
    }


def _spread(frames: Sequence[Frame]) -> Sequence[Frame]:
    number = min(max(len(frames) // 100, FEWEST), MOST, len(frames))
    return [frames[i * len(frames) // number] for i in range(number)]


def _as_stored(logits: NDArray[np.float32], keep_bits: int | None) -> NDArray[np.float32]:
    return rounded(logits.astype(np.float16), keep_bits).astype(np.float32)


def _gap(
    logits: NDArray[np.float32], target: NDArray[np.float32], valid: NDArray[np.bool_]
) -> dict[str, float]:
    p = _probability(logits)[valid]
    q = _probability(target)[valid]
    return {
        "kl": _short(_divergence(p, q).mean()),
        "disagreement": _short(100 * ((p > 0.5) != (q > 0.5)).mean()),
    }


def _probability(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the anatomy, (n, h, w), kept from 0 and 1.

    The distance is one that no divergence here can see.
    """
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return np.exp(-np.logaddexp(0, -margin)).clip(1e-12, 1 - 1e-12)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || q) of two Bernoulli distributions, in nats."""
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def _short(value: float) -> float:
    """Three digits: more would differ between machines."""
    return float(f"{value:.3g}")
