"""Stage ``phantom``: write the embedded data set, a procedural laparoscopic phantom in DSAD's layout."""

from pipeline.files import emptied
from pipeline.phantom import write_phantom
from stages.shared.console import progress, say
from stages.shared.params import load_params
from stages.shared.paths import PHANTOM


def run(workers: int) -> None:
    """Write data/phantom anew."""
    settings = load_params().data.phantom
    emptied(PHANTOM)
    with progress("phantom frames") as step:
        written = write_phantom(
            PHANTOM,
            seed=settings.seed,
            surgeries=settings.surgeries,
            frames=settings.frames,
            size=settings.image_size,
            difficulty=settings.difficulty,
            workers=max(1, workers),
            progress=step,
        )
    say(f"wrote {written} phantom frames to {PHANTOM}")
