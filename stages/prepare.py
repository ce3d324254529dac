"""Stage ``prepare``: check the whole data set, then write frames and labels at data.image_size."""

from pathlib import Path

from pipeline.prepared import PrepareSettings, prepare
from stages.shared.console import counted, progress, say
from stages.shared.project import NO_UNLABELLED, Project


def run(project: Project, workers: int) -> None:
    """Check data.root and write data/prepared."""
    data = project.params.data
    settings = PrepareSettings(
        root=project.root / data.root,
        anatomies=data.anatomies,
        splits=data.splits,
        image_size=data.image_size,
        others=project.other_sets,
        unlabelled_root=_unlabelled(project),
        linked=False,  # DVC takes a link to a folder for an empty one
    )
    with progress("frames checked and resized") as step:
        summary = prepare(
            settings,
            project.prepared_frames,
            project.prepared_labels,
            workers=max(1, workers),
            progress=step,
        )
    for warning in summary.warnings:
        say(f"warning: {warning}")
    for split, per_anatomy in summary.counts.items():
        anatomies = f"{len(per_anatomy)} anatom{'y' if len(per_anatomy) == 1 else 'ies'}"
        say(f"{split:>5}: {counted(sum(per_anatomy.values()), 'frame')} of {anatomies}")
    if data.unlabelled_root != NO_UNLABELLED and not summary.unlabelled:
        say(f"warning: data.unlabelled_root {data.unlabelled_root} holds no <surgery>/*.png")
    if summary.unlabelled:
        say(f"without label: {counted(summary.unlabelled, 'frame')}, for distillation")


def _unlabelled(project: Project) -> Path | None:
    """The folder of frames without masks; the repository's own empty one need not be there."""
    name = project.params.data.unlabelled_root
    folder = project.root / name
    return None if name == NO_UNLABELLED and not folder.exists() else folder
