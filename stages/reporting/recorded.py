"""Figures of this run beside those of the last commit.

On another processor the last digits differ, and no more: sums are added up in another order there.
Training carries the difference on, so that short runs of students differ by some Dice although
nobody changed anything.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import MtkdError
from stages.shared.console import say
from stages.shared.params import PARAMS
from stages.shared.project import Places
from stages.shared.results import read

# Dice, of means and of single anatomies; 1.6 and 16.7 were measured between two processors
# (docs/results/README.md).
MEAN_LIMIT = 3.0
ANATOMY_LIMIT = 25.0
LOCK = "dvc.lock"
NETWORKS = {"teachers": "teachers", "baseline": "baseline", "mtkd": "distilled"}
DECISIVE = ("data", "teacher", "cache", "distill", "student", "evaluate")


@dataclass(frozen=True)
class Comparison:
    """This run against the last commit.

    Attributes:
        commit: its short hash.
        machine: the processor that its figures come from.
        means: its mean Dice of teachers, baseline and distilled student, in percent.
        changed: which inputs differ from those of the commit: ``settings``, ``labels``. Frames of
            the phantom differ by a last digit between processors, and say nothing.
        mean, anatomy: largest difference of a mean and of an anatomy's Dice.
    """

    commit: str
    machine: str
    means: dict[str, float | None]
    changed: tuple[str, ...]
    mean: float
    anatomy: float

    @property
    def is_rounding(self) -> bool:
        """Whether another processor's rounding of the same inputs explains the difference."""
        return self.mean <= MEAN_LIMIT and self.anatomy <= ANATOMY_LIMIT

    def __str__(self) -> str:
        means = ", ".join(
            f"{name} {'-' if dice is None else dice}" for name, dice in self.means.items()
        )
        recorded = f"last commit ({self.commit}, {self.machine}): {means}"
        if self.changed:
            return f"{recorded}; {' and '.join(self.changed)} have changed since"
        if not self.mean and not self.anatomy:
            return f"{recorded}; this run is the same"
        means_apart = f"means differ by up to {self.mean:.1f} Dice (limit {MEAN_LIMIT:.0f})"
        size = f"{means_apart}, anatomies by {self.anatomy:.1f} (limit {ANATOMY_LIMIT:.0f})"
        verdict = (
            "no more than another processor's rounding makes"
            if self.is_rounding
            else "more than rounding makes"
        )
        return f"{recorded}; same settings and labels, {size}: {verdict}"


def run(places: Places, check: bool) -> None:
    """Say how this run compares with the last commit.

    Args:
        places: of the run.
        check: whether a difference that rounding does not explain is an error.

    Raises:
        MtkdError: there is such a difference, and ``check`` is set.
    """
    compared = compare(places)
    if compared is None:
        say("last commit: holds no figures to compare with")
        return
    say(str(compared))
    if check and not compared.changed and not compared.is_rounding:
        raise MtkdError(
            "this run is not the recorded one: look for changes of code, libraries or data"
        )


def compare(places: Places) -> Comparison | None:
    """This run against the last commit; None without one, or if it holds no evaluation."""
    commit = _git(places, "rev-parse", "--short", "HEAD")
    recorded = _committed_json(places, places.metrics / "evaluate.json")
    if commit is None or recorded is None:
        return None
    means, anatomies = _differences(read(places.metrics / "evaluate.json"), recorded)
    host = (_committed_json(places, places.results / "evaluation.json") or {}).get("machine", {})
    return Comparison(
        commit.strip(),
        host.get("processor", "an unknown processor"),
        {name: recorded[network]["dice"]["mean"] for network, name in NETWORKS.items()},
        _changed(places),
        round(max(means, default=0.0), 1),
        round(max(anatomies, default=0.0), 1),
    )


def _differences(measured: Any, recorded: Any) -> tuple[list[float], list[float]]:
    """Differences of all means, and of all anatomies' Dice, that both have."""
    means: list[float] = []
    anatomies: list[float] = []
    for network in NETWORKS:
        for name, dice in measured[network]["dice"].items():
            earlier = recorded[network]["dice"].get(name)
            if dice is not None and earlier is not None:
                differences = means if name == "mean" else anatomies
                differences.append(abs(dice - earlier))
    return means, anatomies


def _changed(places: Places) -> tuple[str, ...]:
    """Which inputs of the run are not those of the last commit."""
    params = places.root / PARAMS
    committed = _committed_yaml(places, params)
    current = yaml.safe_load(params.read_bytes())
    changed = []
    if any(committed.get(section) != current.get(section) for section in DECISIVE):
        changed.append("settings")
    lock = places.root / LOCK
    locked = yaml.safe_load(lock.read_bytes()) if lock.is_file() else {}
    if _labels(places, _committed_yaml(places, lock)) != _labels(places, locked):
        changed.append("labels")
    return tuple(changed)


def _labels(places: Places, lock: Any) -> list[str]:
    """The hash of the prepared labels, as DVC knows it."""
    labels = places.prepared_labels.relative_to(places.root).as_posix()
    outputs = lock.get("stages", {}).get("prepare", {}).get("outs", [])
    return [output["md5"] for output in outputs if output["path"] == labels]


def _committed_json(places: Places, path: Path) -> Any:
    text = _git(places, "show", f"HEAD:./{path.relative_to(places.root).as_posix()}")
    return None if text is None else json.loads(text)


def _committed_yaml(places: Places, path: Path) -> Any:
    text = _git(places, "show", f"HEAD:./{path.relative_to(places.root).as_posix()}")
    return {} if text is None else yaml.safe_load(text)


def _git(places: Places, *arguments: str) -> str | None:
    """The output of a git command.

    None if git is not installed, this is not a repository, or the command fails.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=places.root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
