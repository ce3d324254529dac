"""What a logit store is bound to: everything that determines its content."""

from pathlib import Path

from cache import file_sha256
from pipeline.settings import Params


def expected_parts(params: Params, frames: str, checkpoint: Path | None) -> dict[str, object]:
    """The parts of a store's identity.

    Args:
        params: for the section ``cache`` and the size of the frames.
        frames: digest of the training frames' list and pixels.
        checkpoint: the teacher, or None where only the rest can be known.
    """
    parts: dict[str, object] = {
        "frames": frames,
        "image_size": list(params.data.image_size),
        "precision": params.cache.precision,
        "views": params.cache.views,
        "view_seed": params.cache.seed,
        "keep_bits": params.cache.keep_bits,
    }
    return parts if checkpoint is None else {"teacher": file_sha256(checkpoint), **parts}
