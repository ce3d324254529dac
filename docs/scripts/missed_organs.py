"""What every-frame Dice loses: alarms where an organ is absent, or organs that are missed.

    python docs/scripts/missed_organs.py

In a project with trained networks, of its test frames with complete label maps: Dice of each
anatomy's pixels together, mean over anatomies. ``presence known``: as if all that is claimed on
frames without the anatomy were erased. ``own frames``: of the anatomy's sub-data set. ``others``:
frames of other sub-data sets that show it, with the share of its pixels there that is found, and
the share of what is claimed there that is right.
"""

from collections.abc import Sequence
from pathlib import Path

import shared

from pipeline.checkpoint import load_checkpoint
from pipeline.counts import Counts
from pipeline.evaluation.dice import pooled
from pipeline.evaluation.every_frame import distinct
from pipeline.evaluation.per_frame import Result
from pipeline.machine import Machine
from pipeline.models import Network
from stages.shared.project import Project, load_project
from stages.study.runs import tested


def main() -> None:
    """Print a row for the teachers and for each student."""
    project = load_project(Path())
    print("| | every frame | presence known | own frames | others | found | right |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    teachers = [_network(project.teacher_checkpoint(a)) for a in project.anatomies]
    _print("teachers", teachers, project)
    for name in ("baseline", "mtkd"):
        _print(name, [_network(project.student_checkpoint(name))], project)


def _network(path: Path) -> Network:
    return load_checkpoint(path)[0]


def _print(name: str, networks: Sequence[Network], project: Project) -> None:
    results = tested(networks, project, project.anatomies, Machine("cpu"))
    mapped = [result for result in distinct(results) if result.frame.map]
    rows = [_row(mapped, i, a) for i, a in enumerate(project.anatomies)]
    means = [100 * sum(column) / len(rows) for column in zip(*rows, strict=True)]
    print(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")


def _row(results: Sequence[Result], decoder: int, anatomy: str) -> list[float]:
    every = [_counts(result, decoder) for result in results]
    shown = [counts for counts in every if counts.tp + counts.fn]
    own = [_counts(r, decoder) for r in results if r.frame.anatomy == anatomy]
    others = [_counts(r, decoder) for r in results if r.frame.anatomy != anatomy]
    elsewhere = pooled([counts for counts in others if counts.tp + counts.fn])
    return [
        pooled(every).dice,
        pooled(shown).dice,
        pooled(own).dice,
        elsewhere.dice,
        elsewhere.tp / (elsewhere.tp + elsewhere.fn),
        elsewhere.tp / max(1, elsewhere.tp + elsewhere.fp),
    ]


def _counts(result: Result, decoder: int) -> Counts:
    counts = result.every_decoder.every[decoder]
    assert counts is not None, "a label map does not name every anatomy"
    return counts


if __name__ == "__main__":
    shared.run(main)
