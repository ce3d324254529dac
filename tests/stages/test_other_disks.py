"""Folders of a project that lie on other disks, as links or mounts, and disks that lack what local
ones have.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, mtkd

import cache
from pipeline.errors import MtkdError
from pipeline.files import Unchanged, emptied, require_writable, write_atomically

FOLDERS = ("data", "checkpoints", "metrics", "results", "stores")


def walk(*folders):
    """All files, also behind links."""
    return [
        Path(place, name)
        for top in folders
        for place, _, names in os.walk(top, followlinks=True)
        for name in names
    ]


def files(*folders):
    kept = [
        p
        for p in walk(*folders)
        if p.suffix in (".png", ".csv", ".safetensors") or ".zarr" in str(p)
    ]
    return {str(p): p.read_bytes() for p in kept}


def link(folder, disk):
    """Move a folder to another disk, and leave a link."""
    there = disk / str(folder).replace("/", "_")
    shutil.copytree(folder, there)
    shutil.rmtree(folder)
    Path(folder).symlink_to(there)


@pytest.mark.parametrize(
    "links",
    [
        ("stores", "checkpoints/teachers", "results", "metrics/teachers", "data/prepared"),
        (
            "scratch",
            "data/prepared/frames",
            "data/prepared/labels",
            "results/curves/teachers/liver",
            "results/qualitative",
        ),
    ],
    ids=["folders", "scratch and the outputs themselves"],
)
def test_any_folder_may_be_a_link_to_another_disk(run, disk, links):
    whole = {
        folder: files(folder) for folder in ("data", "checkpoints", "stores", "results/qualitative")
    }
    for folder in links:
        Path(folder).mkdir(parents=True, exist_ok=True)
        link(folder, disk)
        (Path(folder) / "train").mkdir(exist_ok=True)
    (run / "results/qualitative/of an earlier run.png").touch()
    for step in (
        ("prepare",),
        ("train-teacher", "liver"),
        ("cache-logits", "liver"),
        ("evaluate",),
    ):
        mtkd(*step)
    assert all(Path(folder).is_symlink() for folder in links)
    for folder, expected in whole.items():
        assert files(folder) == expected
    assert sorted(p.name for p in (run / "stores").iterdir() if p.suffix) == [
        "colon.zarr",
        "liver.zarr",
    ]
    assert not [p for p in walk(run, disk) if "partial" in str(p)]


def test_answers_are_imported_onto_another_disk(run, disk, monkeypatch):
    (run / ".dvc").mkdir()
    (run / "dvc.yaml").touch()
    monkeypatch.setattr("stages.import_teacher._commit", lambda project, stage: None)
    shutil.move("stores/liver.zarr", "mine.zarr")
    for folder in ("stores", "checkpoints"):
        link(folder, disk)
    mtkd("import-teacher", "liver", "mine.zarr")
    assert cache.verify("stores/liver.zarr") == []
    assert "holds no weights" in mtkd("cache-logits", "liver", code=1)
    assert all(p.name.startswith("preflight-") for p in run.glob("scratch/**/*") if p.is_file())


# Several commands in one process.
STEPS = (
    "import sys; from stages.cli import app; "
    "[app(s.split(), standalone_mode=False) for s in sys.argv[1:]]"
)
MOUNTED = """
set -e
for folder in stores data/prepared/frames data/prepared/labels checkpoints/teachers; do
  mv $folder earlier; mkdir $folder; mount -t tmpfs none $folder; mkdir $folder/lost+found
  cp -r earlier/* $folder
  rm -r earlier
done
"$PYTHON" -c "$STEPS" prepare "cache-logits liver"
rmdir {stores,data/prepared/frames,data/prepared/labels}/lost+found
cp -r data/prepared stores out
"""


def test_folders_may_be_mounts(run):
    """In a name space of its own, where anybody may mount. What a file system keeps for itself
    stays.
    """
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*private, "mount", "-t", "tmpfs", "none", "/mnt"]).returncode
    ):
        pytest.skip("nothing can be mounted here")
    whole = files("data/prepared", "stores")
    extra = run / "data/prepared/frames/val/liver/of an earlier run.png"
    extra.touch()
    (run / "out").mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "STEPS": STEPS}
    done = subprocess.run(
        [*private, "bash", "-c", MOUNTED], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files("out") == {
        f"out/{name.removeprefix('data/')}": content for name, content in whole.items()
    }
    assert not [p for p in walk("out") if "partial" in str(p)]


def test_a_store_in_whose_place_something_is_mounted_is_told_before_work_begins(run, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self.suffix == ".zarr")
    said = (
        "error: stores/liver.zarr is a mount point, and a store can't replace that: "
        "mount stores instead"
    )
    assert said in mtkd("cache-logits", "liver", code=1)


def test_a_second_disk_that_is_too_small_is_told_before_work_begins(run, disk, monkeypatch):
    link("stores", disk)
    monkeypatch.setattr(
        "stages.stores.plan.free_space", lambda folder: 1000 if folder == Path("stores") else 10**9
    )
    monkeypatch.setattr(
        "stages.stores.local.predictions", lambda *arguments: pytest.fail("the teacher was asked")
    )
    said = mtkd("cache-logits", "liver", code=1)
    assert "stores needs 9.0 KiB before compression, the disk has 1000 B free" in said


def test_a_place_that_cannot_be_written_is_told_before_work_begins(run, monkeypatch):
    monkeypatch.setattr(
        "stages.stores.local.predictions", lambda *arguments: pytest.fail("the teacher was asked")
    )
    monkeypatch.setattr(
        "stages.shared.training_run.fit",
        lambda *arguments, **options: pytest.fail("a network was trained"),
    )
    for folder in ("stores", "checkpoints"):
        shutil.move(folder, f"{folder}.there")
        Path(folder).symlink_to("/no/such/disk")
    shutil.copytree("checkpoints.there", "no disk")
    said = "is a link to /no/such/disk, which is missing: mount its disk, or make that folder"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(
            "stages.shared.project.Places.teacher_checkpoint",
            lambda self, name: Path(f"no disk/teachers/{name}.safetensors"),
        )
        assert f"error: stores {said}" in mtkd("cache-logits", "liver", code=1)
    assert f"error: checkpoints {said}" in mtkd("train-teacher", "liver", code=1)


def test_what_a_folder_to_write_in_must_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new/deep")
    with pytest.raises(
        MtkdError, match=r"file is a file, and .*file/deep must be a folder: move the file away"
    ):
        require_writable(tmp_path / "file/deep")
    monkeypatch.setattr("pipeline.files.os.access", lambda path, mode: False)
    with pytest.raises(
        MtkdError, match=f"new can't be written, {tmp_path} is read-only or another user's"
    ):
        require_writable(tmp_path / "new")


def test_frames_of_an_earlier_phantom_do_not_stay_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "there/liver").mkdir(parents=True)
    (tmp_path / "there/liver/old.png").touch()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert not list(emptied(tmp_path / "here").iterdir())
    assert (tmp_path / "here").is_symlink()


def test_a_file_that_is_a_link_is_replaced_and_what_it_points_to_stays(tmp_path, disk):
    """DVC links outputs to its cache, which others share."""
    (disk / "cached.json").write_text("old")
    (tmp_path / "out.json").symlink_to(disk / "cached.json")
    write_atomically(tmp_path / "out.json", b"new")
    assert not (tmp_path / "out.json").is_symlink()
    assert ((tmp_path / "out.json").read_text(), (disk / "cached.json").read_text()) == (
        "new",
        "old",
    )


def test_a_disk_without_fsync_will_do(tmp_path, monkeypatch):
    def fsync(number):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("pipeline.files.os.fsync", fsync)
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_copy_that_was_killed_is_listed_and_pruned(run):
    (run / "stores/.liver.zarr.partial/new").mkdir(parents=True)
    (run / "stores/.liver.zarr.partial.lock").touch()
    assert "a copy that was stopped" in mtkd("cache", "ls")
    assert "would remove stores/.liver.zarr.partial: a copy that was stopped" in mtkd(
        "cache", "prune", "--dry-run"
    )
    mtkd("cache", "prune")
    assert sorted(p.name for p in (run / "stores").iterdir()) == ["colon.zarr", "liver.zarr"]


def test_prune_removes_a_link_and_not_what_it_points_to(run):
    shutil.move("stores/liver.zarr", "mine.zarr")
    (run / "stores/brain.zarr").symlink_to(run / "mine.zarr")
    assert "removed stores/brain.zarr: brain is not in data.anatomies" in mtkd("cache", "prune")
    assert not (run / "stores/brain.zarr").is_symlink()
    assert cache.verify("mine.zarr") == []


def test_a_file_that_gets_another_number_has_not_changed(tmp_path):
    file, copy = tmp_path / "a.png", tmp_path / "b.png"
    file.write_bytes(b"pixels")
    seen = Unchanged([file])
    shutil.copy2(file, copy)
    copy.replace(file)
    seen.check()
    file.write_bytes(b"others")
    os.utime(file, ns=(0, 0))
    with pytest.raises(MtkdError, match="changed while"):
        seen.check()


STRANGE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>
static ino_t next_number = 1000000;
int flock(int file, int operation) { errno = ENOLCK; return -1; }
int fsync(int file) { errno = EINVAL; return -1; }
static int anew(int failed, struct stat *status) {
    if (!failed && S_ISREG(status->st_mode)) status->st_ino = next_number++;
    return failed;
}
int fstat(int file, struct stat *status) {
    return anew(((int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat"))(file, status), status);
}
int stat(const char *path, struct stat *status) {
    int (*stat)(const char *, struct stat *) = dlsym(RTLD_NEXT, "stat");
    return anew(stat(path, status), status);
}
int fstat64(int file, struct stat64 *status) { return fstat(file, (struct stat *)status); }
int stat64(const char *path, struct stat64 *status) { return stat(path, (struct stat *)status); }
"""


def test_a_disk_without_flock_fsync_and_lasting_numbers_of_files(run):
    """A library between Python and the kernel stands for the worst of network file systems."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    Path("strange.c").write_text(STRANGE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", "strange.so", "strange.c", "-ldl"], check=True
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "LD_PRELOAD": str(run / "strange.so")}
    kind = "import os; print(os.stat('params.yaml').st_ino == os.stat('params.yaml').st_ino)"
    if (
        subprocess.run(
            [sys.executable, "-c", kind], env=env, capture_output=True, check=True
        ).stdout
        != b"False\n"
    ):
        pytest.skip("this C library looks at files in another way")
    whole = files("checkpoints", "stores")
    command = [sys.executable, "-c", STEPS, "train-teacher liver", "cache-logits liver"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files("checkpoints", "stores") == whole
    assert not list(run.glob("scratch/**/*.lock"))
