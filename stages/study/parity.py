"""``mtkd study parity``: students that learn from the stores against students whose teachers answer live."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from scipy.stats import t as student_t

import cache
from pipeline.files import write_atomically
from pipeline.machine import Machine
from stages.shared.console import say
from stages.shared.params import PARAMS
from stages.shared.project import Project, load_project
from stages.stores.identity import expected_parts
from stages.stores.local import write_local_stores
from stages.stores.plan import StorePlan, make_plans
from stages.study.runs import measure_all, prepare_page
from stages.study.targets import Case

OUTPUT = Path("results/study_parity.md")
VIEWS = Path("scratch/study/views")
ALONE, LIVE, WARPED, REPLAYED = "no teachers", "live teachers", "stores, warped", "stores, views"


def run(
    project: Project, seeds: int, views: int, jobs: int, output: Path, machine: Machine
) -> None:
    """Train what is missing, print the table and write it.

    Args:
        project: whose frames, teachers and stores.
        seeds: 1 .. seeds; a seed's students start from the same weights and see frames in the same
            order.
        views: stored views of the arm that replays them.
        jobs: runs at the same time.
        output: Markdown.
        machine: where.

    Raises:
        MtkdError: ``output`` is no Markdown file.
    """
    params = project.params
    prepare_page(output)
    _write_views(project, views, machine)
    arms: dict[str, dict[str, Any]] = {
        ALONE: {"distill": None},
        LIVE: {"distill": params.distill, "targets": "live"},
        WARPED: {"distill": params.distill},
        REPLAYED: {"distill": params.distill, "folder": project.root / VIEWS},
    }
    students = [params.student.model_copy(update={"seed": seed}) for seed in range(1, seeds + 1)]
    cases = [
        Case(name=name, student=student, **arm)
        for student in students
        for name, arm in arms.items()
    ]
    results = measure_all(cases, jobs, machine)
    text = "\n".join(
        _table({name: [r for r in results if r["name"] == name] for name in arms}, views)
    )
    write_atomically(output, text.encode())
    say(text)
    say(f"-> {output}")


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


def _table(arms: dict[str, Sequence[dict[str, Any]]], views: int) -> list[str]:
    live = {r["seed"]: r["dice"]["mean"] for r in arms[LIVE]}
    lines = [
        "| | test Dice, per seed | mean | minus live, 95 % interval | seconds per epoch | peak "
        "memory (MiB) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, runs in arms.items():
        dice = [r["dice"]["mean"] for r in runs]
        gap = _interval([r["dice"]["mean"] - live[r["seed"]] for r in runs])
        title = f"{name} (K = {views})" if name == REPLAYED else name
        lines.append(
            f"| {title} | {' '.join(f'{d:.1f}' for d in dice)} | {mean(dice):.1f} | "
            f"{'' if name == LIVE else gap} "
            f"| {mean(r['seconds_per_epoch'] for r in runs):.1f} | "
            f"{max(r['peak_mib'] for r in runs)} |"
        )
    return lines


def _interval(differences: Sequence[float]) -> str:
    """Mean of paired differences, and its interval from Student's t."""
    middle, n = mean(differences), len(differences)
    if n == 1:
        return f"{middle:+.1f}"
    half = student_t.ppf(0.975, n - 1) * stdev(differences) / sqrt(n)
    return f"{middle:+.1f} ({middle - half:+.1f} .. {middle + half:+.1f})"
