"""Stage ``prepare``: check the whole data set, then write frames and labels at data.image_size."""

from pathlib import Path

from pipeline.dsad import Splits
from pipeline.prepared import prepare
from stages.console import progress, say
from stages.layout import PREPARED_FRAMES, PREPARED_LABELS
from stages.params import load_params


def run(workers: int) -> None:
    """Check data.root and write data/prepared."""
    data = load_params().data
    splits = Splits(val=tuple(data.splits.val), test=tuple(data.splits.test))
    with progress("frames checked and resized") as step:
        summary = prepare(
            Path(data.root),
            data.anatomies,
            splits,
            data.image_size,
            PREPARED_FRAMES,
            PREPARED_LABELS,
            workers=max(1, workers),
            progress=step,
        )
    for warning in summary.warnings:
        say(f"warning: {warning}")
    for split, per_anatomy in summary.counts.items():
        say(f"{split:>5}: {sum(per_anatomy.values())} frames of {len(per_anatomy)} anatomies")
