"""The files around the code agree: lock, Makefile, hooks, citation and changelog."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import TypeAdapter

from pipeline.distillation import DIVERGENCES
from pipeline.models import ARCHITECTURES
from pipeline.settings import Architecture, Distill

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED_VERSION = re.compile(r"([\w.-]+)==([\w.]+)")


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


# The lock


def locked_versions():
    """Name and version of each line that is not a comment; a line of another form fails."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    matches = [LOCKED_VERSION.fullmatch(line) for line in lines if not line.startswith("#")]
    return [(canonicalize_name(match[1]), match[2]) for match in matches]


def direct_requirements():
    """What pyproject.toml names in its dependencies and extras, but for this project itself."""
    extras = PROJECT["optional-dependencies"].values()
    requirements = [Requirement(text) for text in sum(extras, PROJECT["dependencies"])]
    return [requirement for requirement in requirements if requirement.name != PROJECT["name"]]


def test_the_lock_has_one_public_version_of_each_library():
    names = [name for name, _ in locked_versions()]
    assert len(names) > len(direct_requirements())
    assert len(names) == len(set(names))
    assert PROJECT["name"] not in names


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_lock_satisfies_pyproject(requirement):
    version = dict(locked_versions())[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.fixture
def make(tmp_path):
    """A function that runs make and returns what pip was called with; nothing is installed."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    record = tmp_path / "calls"
    pip = tmp_path / ".venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(f'#!/bin/sh\necho "$@" >> {record}\n')
    pip.chmod(0o755)
    # A make that runs these tests would pass its own variables on.
    passed_on = ("LOCKED", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")
    env = {name: value for name, value in os.environ.items() if name not in passed_on}

    def run(*arguments):
        record.write_text("")
        subprocess.run(["make", *arguments], cwd=tmp_path, env=env, check=True, capture_output=True)
        return record.read_text().splitlines()

    return run


def test_the_lock_is_installed_if_it_is_asked_for(make):
    (locked,) = make(".venv/ready", "LOCKED=1")
    assert locked.endswith("-c requirements.lock -e .")
    assert make(".venv/ready", "LOCKED=1") == []
    assert make(".venv/ready") == []


def test_ranges_are_installed_otherwise_and_end_the_lock(make):
    (ranges,) = make(".venv/ready")
    assert "requirements.lock" not in ranges
    assert len(make(".venv/ready", "LOCKED=1")) == 1
    (development,) = make(".venv/ready-dev")
    assert development.endswith("-e .[dev]") and "requirements.lock" not in development
    assert len(make(".venv/ready-dev", "LOCKED=1")) == 2


def test_another_lock_is_installed(make, tmp_path):
    make(".venv/ready-dev", "LOCKED=1")
    (tmp_path / "requirements.lock").touch()
    assert len(make(".venv/ready-dev", "LOCKED=1")) == 2


# Checks before a commit


def recipe(target):
    """The commands of a target of the Makefile."""
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [line.strip() for line in rule[1].splitlines()]


def test_hooks_run_the_commands_of_make_check():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("check")
    for hook in repository["hooks"]:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)


# Citation and changelog


def test_the_citation_names_this_version_and_the_paper():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= citation.keys()
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]["text"]
    (paper,) = citation["references"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())
    assert paper["authors"][0] == {"given-names": "Lennart", "family-names": "Maack"}
    assert paper["year"] == 2024


def test_the_changelog_begins_with_what_is_not_released():
    headings = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert PROJECT["version"] in headings


# What must be listed twice


def test_settings_accept_every_architecture_and_no_other():
    assert set(TypeAdapter(Architecture).json_schema()["enum"]) == set(ARCHITECTURES)


def test_settings_accept_every_divergence_and_no_other():
    softmax = Distill.model_json_schema()["properties"]["softmax"]
    assert set(softmax["enum"]) == set(DIVERGENCES)
