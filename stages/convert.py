"""``mtkd convert NAME SRC DST``: a data set of others, in a layout that is read here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import StoreBusyError
from cache.lock import ScratchLock
from pipeline.convert.formats import FORMATS, Format
from pipeline.convert.plans import Plan
from pipeline.convert.unknown_pixels import UnknownPixels
from pipeline.convert.writing import SOURCES, Summary, Target, convert
from pipeline.dsad import is_archive
from pipeline.errors import MtkdError
from pipeline.files import some, walk
from stages.shared.console import counted, progress, say

LISTED = 20  # frames of a kind that SOURCE.md names


@dataclass(frozen=True)
class Settings:
    """What is the same for every format.

    Attributes:
        unknown: what is done with pixels without a known label.
        force: whether an earlier conversion in the target is replaced.
        licence, url: of the data, where the format does not say it.
        options: what the user chose, for ``SOURCE.md``.
    """

    unknown: UnknownPixels = field(default_factory=UnknownPixels)
    force: bool = False
    licence: str = ""
    url: str = ""
    options: Mapping[str, object] = field(default_factory=dict)


def run(
    name: str, source: Path, target: Path, plan: Callable[[Path], Plan], settings: Settings
) -> None:
    """Convert, and say what was written.

    Args:
        name: of the format.
        source: what is read.
        target: folder that is written.
        plan: of the format's module, with its options.
        settings: what is the same for every format.

    Raises:
        MtkdError: all problems of the source together; or the target cannot be used.
    """
    if not source.exists():
        raise MtkdError(f"{source} does not exist: name the data set")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise MtkdError(f"{target} lies in {source} and would be read with it: choose another DST")
    with _readable():
        if source.is_dir():
            _say_archives(source)
        planned = plan(source)
    for note in planned.notes:
        say(f"note: {note}")
    with progress("frames checked") as check, progress("frames written") as write:
        where = Target(target, settings.unknown, settings.force, check, write, alone)
        summary = convert(
            planned, where, lambda summary: _described(FORMATS[name], planned, settings, summary)
        )
    for origin in summary.skipped:
        say(f"left out, pixels without a label: {origin}")
    for note in summary.notes:
        say(f"warning: {note}")
    already = summary.frames - summary.written
    kept = f"; {already} were there already" if already else ""
    surgeries = f"{summary.surgeries} surger{'y' if summary.surgeries == 1 else 'ies'}"
    say(f"-> {target}: {counted(summary.written, 'frame')} of {surgeries}{kept}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other conversions out of a folder.

    Raises:
        MtkdError: one is writing there.
    """
    try:
        lock = ScratchLock(folder / ".conversion")
    except StoreBusyError:
        raise MtkdError(f"{folder}: another conversion writes there: wait for its end") from None
    with lock:
        yield


@contextmanager
def _readable() -> Iterator[None]:
    """Name what the system does not let us read."""
    try:
        yield
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise MtkdError(f"{named}cannot be read ({error.strerror}): allow it") from error


def _say_archives(source: Path) -> None:
    archives = [path for path in walk(source) if is_archive(path)]
    if archives:
        say(f"warning: archives are not read, unpack them if they hold frames: {some(archives)}")


def _described(of: Format, plan: Plan, settings: Settings, summary: Summary) -> str:
    """The text of ``SOURCE.md``."""
    facts = {
        "Licence": settings.licence or of.licence or plan.licence or "not stated",
        "URL": settings.url or of.url or plan.url or "not stated",
        "Citation": of.citation or "not stated",
        "Converted with": f"mtkd convert {of.name}",
        "Format documented in": of.documented,
        "Reader": of.verified,
    }
    lines = [
        "# Source",
        "",
        f"{of.title} This folder holds frames in a layout of mtkd. {SOURCES} names the original of "
        "each frame. The licence of the data holds here, too.",
        "",
        *_listed(facts),
        "",
        "## Options",
        "",
        *_listed(settings.options),
        "",
        "## Content",
        "",
        f"- {counted(summary.frames, 'frame')}, number of surgeries: {summary.surgeries}",
        f"- anatomies: {', '.join(plan.anatomies) or 'none, frames without masks'}",
        *(f"- {note}" for note in plan.notes),
        *_first_of("left out, since pixels have no known label", summary.skipped),
        *_first_of("odd", summary.notes),
    ]
    return "\n".join(lines) + "\n"


def _listed(facts: Mapping[str, object]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _first_of(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return [f"- {title}: {', '.join(lines[:LISTED])}{more}"]
