"""What the tests are given: a small data set with its params.yaml, and a folder in which every
stage ran.
"""

import copy
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, STEPS, mtkd, write_dataset

# Bytes are compared, and a GPU repeats none: on a machine with one, MTKD_DEVICE=cuda pytest runs
# there all the same.
os.environ.setdefault("MTKD_DEVICE", "cpu")

# The slowest first: the last file to begin keeps one process busy while the other has nothing left.
SLOW_FILES = (
    "test_graph.py",
    "test_deployment.py",
    "test_selfcheck.py",
    "test_resume.py",
    "test_runtimes.py",
    "test_study.py",
    "test_export.py",
    "test_environment.py",
)


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: (
            SLOW_FILES.index(item.path.name) if item.path.name in SLOW_FILES else len(SLOW_FILES)
        )
    )


@pytest.fixture(scope="session")
def default_params():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def project(tmp_path, monkeypatch, default_params):
    """A folder with a data set and a params.yaml of a size that trains in seconds; it is the
    current one.
    """
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dsad")
    params = copy.deepcopy(default_params)
    params["data"] |= {
        "root": str(tmp_path / "dsad"),
        "anatomies": ["liver", "colon"],
        "image_size": [32, 48],
        "splits": {"val": [2], "test": ["03"]},
    }
    for section in ("teacher", "student"):
        params[section] |= {"arch": "mininetv2", "pretrained": "none", "epochs": 2, "batch_size": 4}
    params["cache"] |= {"shard_frames": 4, "batch_size": 3}
    params["benchmark"] |= {"image_size": [64, 96], "warmup": 1, "repeats": 1}

    def write(**changes):
        for key, value in changes.items():
            section, _, name = key.partition("__")
            params[section][name] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return tmp_path

    write()
    return write


@pytest.fixture
def disk(tmp_path):
    """A folder on another disk than the tests' own, of which one is in the memory."""
    device = tmp_path.stat().st_dev
    others = [
        place
        for place in (Path("/dev/shm"), Path("/tmp"), Path.home())
        if os.access(place, os.W_OK) and place.stat().st_dev != device
    ]
    if not others:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=others[0]) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, default_params):
    """A folder in which every stage ran."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    write = project.__wrapped__(folder, patch, default_params)
    write(cache__views=0)
    output = [mtkd(*step) for step in STEPS]
    patch.undo()
    return folder, output


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the finished folder, as the current one."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    monkeypatch.chdir(folder)
    return folder
