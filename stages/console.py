"""What a stage tells while it works: a moving bar in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# In a file or a pipe there is no width to keep to.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
SECONDS_BETWEEN_LINES = 10.0

Step = Callable[[int, int], None]  # done, total


def say(message: str) -> None:
    """Print a line; a bar that is moving stays below it."""
    console.print(message, markup=False)


@contextmanager
def progress(what: str) -> Iterator[Step]:
    """A bar with rate and remaining time; without a terminal, a line every ten seconds."""
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str) -> Step:
    last = monotonic()

    def step(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = monotonic()
            say(f"{what}: {done}/{total}")

    return step
