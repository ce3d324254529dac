"""Stage ``phantom``: the embedded data set, a procedural phantom in DSAD's layout."""

from pipeline.files import emptied
from pipeline.phantom import write_phantom
from stages.shared.console import progress, say
from stages.shared.project import Project


def run(project: Project, workers: int) -> None:
    """Write data/phantom anew."""
    settings = project.params.data.phantom
    folder = emptied(project.phantom)
    with progress("phantom frames") as step:
        written = write_phantom(
            folder,
            seed=settings.seed,
            surgeries=settings.surgeries,
            frames=settings.frames,
            size=settings.image_size,
            difficulty=settings.difficulty,
            workers=max(1, workers),
            progress=step,
        )
    say(f"wrote {written} phantom frames to {folder}")
