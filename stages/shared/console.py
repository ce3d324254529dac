"""What a stage tells while it works: a moving bar in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

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


class Step(Protocol):
    """Tell how far the work is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Done, of how many, and what else is worth knowing."""


def say(message: str) -> None:
    """Print a line; a bar that is moving stays below it."""
    console.print(message, markup=False)


def readable(size: float) -> str:
    """A number of bytes in the unit in which it is short."""
    power = next((n for n in range(3) if size < 1024 ** (n + 1)), 3)
    return f"{size / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def counted(number: int, noun: str) -> str:
    """A number of things, such as ``1 epoch`` and ``2 epochs``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def hush(quiet: bool) -> None:
    """Let one process of several do the talking."""
    console.quiet = quiet


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
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, rate="", note="")
        rate = _Rate()

        def step(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, rate=_pace(rate(done)), note=note)

        yield step


class _Rate:
    """Steps per second since the first one that was told: a resumed run begins in the middle."""

    def __init__(self) -> None:
        self.start: tuple[float, int] | None = None

    def __call__(self, done: int) -> float:
        now = monotonic()
        self.start = self.start or (now, done)
        return (done - self.start[1]) / max(now - self.start[0], 1e-9)


def _pace(speed: float) -> str:
    """Steps per second, or seconds per step where a step takes long."""
    return f"{1 / speed:.0f} s each" if 0 < speed < 0.1 else f"{speed:.1f}/s"


def _lines(what: str) -> Step:
    last = monotonic()
    rate = _Rate()

    def step(done: int, total: int, note: str = "") -> None:
        nonlocal last
        speed = rate(done)
        if monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = monotonic()
            left = f", {_pace(speed)}, {(total - done) / speed:.0f} s left" if speed else ""
            say(f"{what}: {done}/{total}{left}{f', {note}' if note else ''}")

    return step
