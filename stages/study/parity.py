"""``mtkd study parity``: students that learn from stores against students of live teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import yaml
from scipy.stats import t as student_t

import cache
from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from pipeline.machine import Machine
from stages.shared.console import say
from stages.shared.params import PARAMS
from stages.shared.project import Project, load_project
from stages.stores.identity import expected_parts
from stages.stores.local import write_local_stores
from stages.stores.plan import StorePlan, make_plans
from stages.study.runs import RunResult, measure_all, prepare_page
from stages.study.targets import Case

OUTPUT = Path("results/study_parity.md")
VIEWS = Path("scratch/study/views")
ALONE = "no teachers"
LIVE = "live teachers"
WARPED = "stores, warped"
REPLAYED = "stores, views"


def run(
    project: Project, seeds: int, views: int, jobs: int, output: Path, machine: Machine
) -> None:
    """Train what is missing, print the table and write it.

    Args:
        project: whose frames, teachers and stores.
        seeds: 1 .. seeds; a seed's students start from the same weights and see frames in the same
            order.
        views: stored views of the condition that replays them.
        jobs: runs at the same time.
        output: Markdown.
        machine: where.

    Raises:
        MtkdError: ``output`` is not a Markdown file, or there are no test frames.
    """
    prepare_page(output)
    _write_views(project, views, machine)
    runs: dict[str, list[RunResult]] = {}
    for result in measure_all(_cases(project, seeds), project.study_runs, jobs, machine):
        runs.setdefault(result.name, []).append(result)
    text = "\n".join(_table(runs, views))
    write_atomically(output, text.encode())
    say(text)
    say(f"-> {output}")


def _cases(project: Project, seeds: int) -> list[Case]:
    """For each seed the four conditions, in the order of the table."""
    student = project.params.student
    distill = project.params.distill
    conditions = (
        Case(ALONE, student, None, folder=project.root),
        Case(LIVE, student, distill, "live", project.root),
        Case(WARPED, student, distill, folder=project.root),
        Case(REPLAYED, student, distill, folder=project.root / VIEWS),
    )
    students = [student.model_copy(update={"seed": seed}) for seed in range(1, seeds + 1)]
    return [replace(case, student=student) for student, case in product(students, conditions)]


def _write_views(project: Project, views: int, machine: Machine) -> None:
    """A second project on the same frames and teachers, whose stores hold views."""
    root = project.root / VIEWS
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    for shared in ("data", "checkpoints/teachers"):
        link = root / shared
        if not link.is_symlink():
            link.symlink_to((project.root / shared).absolute())
    params = yaml.safe_load(project.params_file.read_text())
    params["cache"]["views"] = views
    write_atomically(root / PARAMS, yaml.safe_dump(params).encode())
    plans = make_plans(load_project(root), [])
    missing = [plan for plan in plans if not _is_current(plan)]
    if missing:
        write_local_stores(missing, machine)


def _is_current(plan: StorePlan) -> bool:
    """Whether an earlier run left the store that the settings ask for."""
    expected = expected_parts(plan.params, plan.digest, plan.checkpoint)
    try:
        return expected.items() <= cache.open_store(plan.path).identity_parts.items()
    except cache.StoreError:
        return False


def _table(runs: Mapping[str, Sequence[RunResult]], views: int) -> list[str]:
    """A row for each condition: its Dice, and that minus live teachers' of the same seeds."""
    live = {run.seed: _mean_dice(run) for run in runs[LIVE]}
    lines = [
        "| | test Dice, per seed | mean | minus live, 95 % interval | seconds per epoch | peak "
        "memory (MiB) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, seeds in runs.items():
        title = f"{name} (K = {views})" if name == REPLAYED else name
        lines.append(_row(title, seeds, None if name == LIVE else live))
    return lines


def _row(title: str, seeds: Sequence[RunResult], live: Mapping[int, float] | None) -> str:
    dice = [_mean_dice(run) for run in seeds]
    differences = ""
    if live is not None:
        pairs = zip(seeds, dice, strict=True)
        differences = _interval([value - live[run.seed] for run, value in pairs])
    return (
        f"| {title} | {' '.join(f'{d:.1f}' for d in dice)} | {mean(dice):.1f} | {differences} "
        f"| {mean(run.seconds_per_epoch for run in seeds):.1f} | "
        f"{max(run.peak_mib for run in seeds)} |"
    )


def _mean_dice(run: RunResult) -> float:
    dice = run.dice["mean"]
    if dice is None:
        raise MtkdError("no test frame has a label: there is nothing to compare")
    return dice


def _interval(differences: Sequence[float]) -> str:
    """Mean of paired differences, and its interval from Student's t."""
    middle = mean(differences)
    n = len(differences)
    if n == 1:
        return f"{middle:+.1f}"
    half = student_t.ppf(0.975, n - 1) * stdev(differences) / sqrt(n)
    return f"{middle:+.1f} ({middle - half:+.1f} .. {middle + half:+.1f})"
