"""Stage ``phantom``: the embedded data set, a procedural phantom in DSAD's layout."""

from pipeline.files import emptied
from pipeline.phantom import PhantomSettings, write_phantom
from stages.shared.console import progress, say
from stages.shared.project import Project


def run(project: Project, workers: int) -> None:
    """Write data/phantom anew, with complete label maps of validation and test surgeries."""
    phantom = project.params.data.phantom
    splits = project.params.data.splits
    settings = PhantomSettings(
        seed=phantom.seed,
        surgeries=phantom.surgeries,
        frames=phantom.frames,
        size=phantom.image_size,
        difficulty=phantom.difficulty,
        label_maps=True,
        mapped=[*splits.val, *splits.test],  # to measure by; training frames are partly labelled
    )
    folder = emptied(project.phantom)
    with progress("phantom frames") as step:
        written = write_phantom(folder, settings, workers=max(1, workers), progress=step)
    say(f"wrote {written} phantom frames to {folder}")
