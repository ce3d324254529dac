"""Stage ``prepare``: check the whole data set, then write frames and labels at data.image_size."""

from pipeline.preparation.prepare import prepare
from stages.shared.console import counted, progress, say
from stages.shared.project import NO_UNLABELLED, Project


def run(project: Project, workers: int) -> None:
    """Check data.root and write data/prepared."""
    data = project.params.data
    with progress("frames checked and resized") as step:
        summary = prepare(
            project.prepare_settings,
            project.prepared_frames,
            project.prepared_labels,
            workers=max(1, workers),
            progress=step,
        )
    for warning in summary.warnings:
        say(f"warning: {warning}")
    for split, per_anatomy in summary.counts.items():
        anatomies = f"{len(per_anatomy)} anatom{'y' if len(per_anatomy) == 1 else 'ies'}"
        frames = counted(summary.pictures[split], "frame")
        masks = sum(per_anatomy.values())
        several = f" with {masks} masks" if masks != summary.pictures[split] else ""
        say(f"{split:>5}: {frames}{several} of {anatomies}")
    if data.unlabelled_root != NO_UNLABELLED and not summary.unlabelled:
        say(f"warning: data.unlabelled_root {data.unlabelled_root} holds no <surgery>/*.png")
    if summary.unlabelled:
        say(f"without label: {counted(summary.unlabelled, 'frame')}, for distillation")
