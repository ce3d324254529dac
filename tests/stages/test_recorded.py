"""``mtkd summary`` tells what was recorded from what this machine made, and rounding from a
change.
"""

import json
import subprocess

import pytest
import yaml
from helpers import mtkd

GIT = ["git", "-c", "user.name=tests", "-c", "user.email=tests"]


@pytest.fixture
def recorded(run):
    """A finished run whose figures are committed."""
    lock = {"stages": {"prepare": {"outs": [{"path": "data/prepared/labels", "md5": "a"}]}}}
    (run / "dvc.lock").write_text(yaml.safe_dump(lock))
    (run / ".gitignore").write_text("data\nstores\nscratch\ncheckpoints\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "recorded"]):
        subprocess.run([*GIT, *command], cwd=run, check=True)
    return run


def measured(run, **apart):
    """As if a network's mean, or one anatomy, had come out otherwise."""
    path = run / "metrics/evaluate.json"
    metrics = json.loads(path.read_text())
    for name, dice in apart.items():
        metrics["mtkd"]["dice"][name] += dice
    path.write_text(json.dumps(metrics))


def test_the_recorded_run_is_known_as_such(recorded):
    assert "this run is the same" in mtkd("summary", "--check")


@pytest.mark.parametrize(
    ("apart", "verdict", "code"),
    [
        ({"mean": 2.9, "liver": 24.0}, "no more than another processor's rounding makes", 0),
        ({"mean": 3.3}, "more than rounding makes", 1),
        ({"colon": 26.0}, "more than rounding makes", 1),
    ],
)
def test_a_difference_is_rounding_or_real(recorded, apart, verdict, code):
    measured(recorded, **apart)
    output = mtkd("summary", "--check", code=code)
    assert f": {verdict}" in output
    assert f": {verdict}" in mtkd("summary")


def test_other_settings_or_labels_are_no_other_rounding(recorded):
    measured(recorded, mean=30.0)
    params = yaml.safe_load((recorded / "params.yaml").read_text())
    params["student"]["epochs"] = 3
    (recorded / "params.yaml").write_text(yaml.safe_dump(params))
    assert "; settings have changed since" in mtkd("summary", "--check")
    (recorded / "dvc.lock").write_text(
        (recorded / "dvc.lock").read_text().replace("md5: a", "md5: b")
    )
    assert "; settings and labels have changed since" in mtkd("summary")


def test_without_a_commit_there_is_nothing_to_compare_with(run):
    assert "last commit: holds no figures to compare with" in mtkd("summary", "--check")
