"""Figures of this run beside those of the last commit: on another processor the last digits differ, and no more.

Sums are added up in another order there. Training carries the difference on, so that short runs of
students differ by some Dice although nobody changed anything.
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

# Dice, of means and of single anatomies; 1.6 and 16.7 were seen between two processors
# (docs/results/README.md).
MEAN_LIMIT, ANATOMY_LIMIT = 3.0, 25.0
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
        """Whether it is no more than another processor's rounding makes of the same inputs."""
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
        MtkdError: so it is.
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
    own = read(places.metrics / "evaluate.json")
    means, anatomies = [0.0], [0.0]
    for network in NETWORKS:
        for name, dice in own[network]["dice"].items():
            then = recorded[network]["dice"].get(name)
            if dice is not None and then is not None:
                (means if name == "mean" else anatomies).append(abs(dice - then))
    host = (_committed_json(places, places.results / "evaluation.json") or {}).get("machine", {})
    return Comparison(
        commit.strip(),
        host.get("processor", "an unknown processor"),
        {name: recorded[network]["dice"]["mean"] for network, name in NETWORKS.items()},
        _changed(places),
        round(max(means), 1),
        round(max(anatomies), 1),
    )


def _changed(places: Places) -> tuple[str, ...]:
    """Which inputs of the run are not those of the last commit."""
    params = places.root / PARAMS
    then = _committed_yaml(places, params)
    now = yaml.safe_load(params.read_bytes())
    changed = []
    if any(then.get(section) != now.get(section) for section in DECISIVE):
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
    """What git says; None if it is not installed, this is not a repository, or there is no such thing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=places.root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
