"""What a logit store is bound to: everything that determines its content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import Store, file_sha256
from pipeline.settings import Params
from stages.shared.project import Project


def expected_parts(
    params: Params, frames: str | None, checkpoint: Path | None
) -> dict[str, object]:
    """The parts of a store's identity.

    Args:
        params: for the section ``cache`` and the size of the frames.
        frames: digest of the training frames' list and pixels, or None where only the rest can be
            known.
        checkpoint: the teacher, or None likewise.
    """
    parts: dict[str, object] = {
        "image_size": list(params.data.image_size),
        "precision": params.cache.precision,
        "views": params.cache.views,
        "view_seed": params.cache.seed,
        "keep_bits": params.cache.keep_bits,
    }
    if frames is not None:
        parts = {"frames": frames, **parts}
    return parts if checkpoint is None else {"teacher": file_sha256(checkpoint), **parts}


def known_checkpoint(project: Project, anatomy: str) -> Path | None:
    """The teacher's checkpoint if it is here; who was given stores only has none."""
    path = project.teacher_checkpoint(anatomy)
    return path if path.is_file() else None


def misfits(
    attributes: Mapping[str, Any], anatomy: str, expected: Mapping[str, object]
) -> dict[str, str]:
    """What a store is for and should not be, by part, each as found and expected; empty if it fits.

    Args:
        attributes: of the store, whole or begun.
        anatomy: whose store is wanted.
        expected: parts of the identity, and ``shard_frames`` where that matters.
    """
    stored = {
        **attributes.get("identity_parts", {}),
        **{k: attributes.get(k) for k in ("anatomy", "shard_frames")},
    }
    wanted = {"anatomy": anatomy, **expected}
    return {
        part: f"its {part} is {stored.get(part)}, expected {value}"
        for part, value in wanted.items()
        if stored.get(part) != value
    }


def misfit_line(store: Store, anatomy: str, expected: Mapping[str, object]) -> str:
    """One line that says why a store does not fit and what to run; empty if it fits."""
    differences = misfits(store.attributes, anatomy, expected)
    if not differences:
        return ""
    problems = ", ".join(differences.values())
    return f"{store.path} does not fit: {problems}; run `dvc repro cache_logits@{anatomy}`"
