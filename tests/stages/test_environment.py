"""What a machine or a cluster sets does not decide unasked: the work goes on, or ends in one
line.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from helpers import ROOT, mtkd

from pipeline import environment, handover
from pipeline.errors import MtkdError
from pipeline.launch import STARTED_BY, forget, plan_launch
from pipeline.machine import make_loader
from pipeline.training_errors import translated_errors

CLUSTER = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NTASKS": "1",
}
COMMAND = [sys.executable, "-m", "stages.cli"]
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"
)


def variables(**more):
    """Of the environment; bytecode is kept, or every process would compile its libraries anew."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def started(command, **more):
    """Run a command; all that it says. One that waits forever is killed with the processes that it
    started.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        env=variables(**more),
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


@pytest.fixture
def short(run):
    """The finished project as the current folder, with trainings of one epoch."""
    params = yaml.safe_load((run / "params.yaml").read_text())
    for section in ("teacher", "student"):
        params[section]["epochs"] = 1
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    return run


class Numbers(torch.utils.data.Dataset):
    """Items of a kibibyte of numbers."""

    def __getitem__(self, index):
        return {"numbers": torch.full((256,), float(index)), "index": torch.tensor(index)}


def batches(workers=2):
    return list(make_loader(Numbers(), [[0, 1], [2, 3], [4, 5]], workers))


@pytest.fixture
def numbers():
    return batches(0)


def require_equal(found, numbers):
    for one, other in zip(found, numbers, strict=True):
        assert {name: value.dtype for name, value in one.items()} == {
            "numbers": torch.float32,
            "index": torch.int64,
        }
        assert all(torch.equal(one[name], other[name]) for name in other)


# Temporary files


def test_a_long_tmpdir_keeps_nobody_waiting(short):
    """The path of a socket in it would be too long."""
    folder = short / ("a" * 90)
    folder.mkdir()
    started(
        [*COMMAND, "train-teacher", "liver", "--device", "cpu", "--workers", "1"],
        TMPDIR=str(folder),
    )


@pytest.mark.parametrize(
    ("name", "line"), [("none", "does not exist"), ("params.yaml", "is not a folder")]
)
def test_a_tmpdir_that_cannot_be_used_is_named(short, monkeypatch, name, line):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(short / name))
    said = mtkd("train-teacher", "liver", "--device", "cpu")
    assert f"warning: TMPDIR={short / name} {line}: temporary files go to /" in said


def test_without_any_short_folder_batches_go_through_pipes(numbers, monkeypatch):
    monkeypatch.setattr(environment, "SHORT_FOLDERS", ())
    monkeypatch.setattr(environment, "SOCKET_PATH", 20)
    assert not environment.use_short_sockets()
    require_equal(batches(), numbers)


# Shared memory


def test_batches_are_the_same_through_shared_memory_and_through_pipes(numbers, monkeypatch):
    require_equal(batches(), numbers)
    monkeypatch.setattr(handover, "shared_memory", lambda: 4096)
    monkeypatch.setattr(handover, "default_collate", None)  # it would take shared memory
    require_equal(batches(), numbers)


@pytest.fixture
def open_files():
    """A function that limits how many files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_open_files_send_batches_through_pipes(numbers, monkeypatch, open_files):
    monkeypatch.setattr(handover, "default_collate", None)
    open_files(160)
    require_equal(batches(), numbers)


def test_256_open_files_suffice(short, open_files):
    open_files(256)
    assert "epoch 1" in mtkd("train-student", "mtkd", "--device", "cpu", "--workers", "2")


@pytest.fixture
def shared_memory():
    """A function from a size to the words before a command that give it so much in /dev/shm."""

    def words(size):
        return [
            "unshare",
            "-m",
            "bash",
            "-c",
            f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"',
            "-",
        ]

    if subprocess.run([*words("1m"), "true"], capture_output=True).returncode:
        pytest.skip("no mounts here")
    return words


@needs_root
def test_a_small_shared_memory_is_named_and_suffices(short, shared_memory, monkeypatch, request):
    ordinary = TemporaryDirectory(dir="/tmp")  # the tests' own folder may be in what is hidden here
    request.addfinalizer(ordinary.cleanup)
    short = shutil.copytree(short, Path(ordinary.name) / "run")
    monkeypatch.chdir(short)
    params = (short / "params.yaml").read_text()
    (short / "params.yaml").write_text(
        re.sub(r"image_size:\n  - 32\n  - 48", "image_size: [256, 320]", params)
    )
    mtkd("prepare")
    said = started(
        [
            *shared_memory("3m"),
            *COMMAND,
            "train-student",
            "baseline",
            "--device",
            "cpu",
            "--workers",
            "2",
        ]
    )
    assert (
        "warning: /dev/shm has 3.0 MiB free, 2 loader processes fill about 6.3 MiB: batches go "
        "through" in said
    )
    assert said.index("warning: /dev/shm") < said.index("epoch 1")


@needs_root
def test_no_shared_memory_at_all_is_told_in_one_line(shared_memory):
    code = "from pipeline.environment import require_semaphores; require_semaphores(2)"
    done = subprocess.run(
        [*shared_memory("32k"), sys.executable, "-c", code],
        env=variables(),
        capture_output=True,
        text=True,
    )
    line = (
        "2 loader processes need 32 semaphores in /dev/shm, which can't be created "
        "(No space left on device): "
    )
    assert done.stderr.splitlines()[-1].startswith(f"pipeline.errors.MtkdError: {line}")


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "NCCL error: Error while creating shared memory segment /dev/shm/nccl-x (size 5767520)",
    ],
)
def test_shared_memory_that_runs_out_is_told_in_one_line(text):
    with (
        pytest.raises(MtkdError, match=r"/dev/shm has too little room .* --shm-size=1g") as caught,
        translated_errors(),
    ):
        raise RuntimeError(text)
    assert "\n" not in str(caught.value)


# Variables of a cluster


def test_tasks_of_a_slurm_job_decide_nothing(short, monkeypatch):
    for name, value in (CLUSTER | {"SLURM_NTASKS": "4"}).items():
        monkeypatch.setenv(name, value)
    said = mtkd("train-teacher", "liver", "--device", "cpu")
    assert (
        "note: the SLURM job has 4 tasks (SLURM_NTASKS=4), which are not used: this training is "
        "one process" in said
    )


def test_ranks_of_an_earlier_program_decide_nothing(short):
    ranks = {
        "LOCAL_RANK": "0",
        "RANK": "0",
        "MASTER_PORT": "1",
        "LT_DEVICES": "7",
        "SLURM_NTASKS_PER_NODE": "1",
    }
    said = started(
        [*COMMAND, "train-student", "mtkd", "--device", "cpu", "--devices", "2"], **CLUSTER | ranks
    )
    assert "LOCAL_RANK=0" in said
    assert "ignored, as torchrun did not start this process" in said
    assert "2 processes share every batch" in said


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("PMI_SIZE", "mpirun"),
        ("JSM_NAMESPACE_SIZE", "jsrun"),
        ("WORLD_SIZE", "another launcher"),
    ],
)
def test_processes_that_another_launcher_started_share_nothing(name, launcher):
    alone = plan_launch(1, CLUSTER | {name: "4"})
    assert alone.note.startswith(
        f"{launcher} started 4 processes ({name}=4); this one trains alone"
    )
    with pytest.raises(MtkdError, match=rf"{launcher} started 4 .* each would start --devices 2"):
        plan_launch(2, CLUSTER | {name: "4"})


def test_a_job_of_one_task_needs_no_note():
    assert plan_launch(4, CLUSTER).note == ""
    assert (
        plan_launch(4, CLUSTER | {"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1"}).note
        == ""
    )


def test_torchrun_decides_also_inside_a_job():
    ranks = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    address = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}
    launch = plan_launch(1, CLUSTER | {"SLURM_STEP_NUM_TASKS": "2"} | ranks | address)
    assert (launch.devices, launch.nodes, launch.by_torchrun, launch.is_first) == (
        4,
        2,
        True,
        False,
    )
    with pytest.raises(
        MtkdError, match="but RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE is not set"
    ):
        plan_launch(1, address)


def test_only_a_process_that_we_started_is_taken_for_one():
    assert not plan_launch(
        2, {STARTED_BY: str(os.getppid()), "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    ).is_first
    with pytest.raises(MtkdError):
        plan_launch(2, {STARTED_BY: str(os.getppid() + 1), "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    found = {"LOCAL_RANK": "1", "LT_PRECISION": "16-mixed", "CUDA_VISIBLE_DEVICES": "1"}
    forget(found)
    assert found == {"CUDA_VISIBLE_DEVICES": "1"}


def test_processes_that_do_not_come_end_the_wait():
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    from pipeline.launch import meet

    with pytest.raises(
        MtkdError, match=r"only 1 of 2 processes came to 127.0.0.1:\d+ within 0 s"
    ) as caught:
        meet(0, 2, "127.0.0.1", find_free_network_port(), patience=0.2)
    assert "\n" not in str(caught.value)
    with subprocess.Popen(["false"]) as ended:
        ended.wait()
        with pytest.raises(MtkdError, match=r"ended \(exit status 1\) before it began"):
            meet(0, 2, "127.0.0.1", find_free_network_port(), [ended])


def test_ctrl_c_ends_the_wait():
    code = (
        "from lightning_fabric.plugins.environments.lightning import find_free_network_port as "
        "free;"
        "from pipeline.launch import meet; print('waits', flush=True); meet(0, 2, '127.0.0.1', "
        "free())"
    )
    python, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(python, env=variables(), stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=120)[1]


def scripts():
    page = (ROOT / "docs/how-to/slurm.md").read_text()
    return re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", page, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "teacher colon: best"), (1, "2 processes share every batch")]
)
def test_the_jobs_of_the_page_run(short, number, said):
    job = short / "job.sh"
    job.write_text(scripts()[number])
    assert subprocess.run(["bash", "-n", job]).returncode == 0
    (short / "bin").mkdir()
    for name, words in {
        "python": sys.executable,
        "mtkd": f"{sys.executable} -m stages.cli",
    }.items():
        (short / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (short / "bin" / name).chmod(0o755)
    job_variables = CLUSTER | {
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "MTKD_DEVICE": "cpu",
    }
    output = started(["bash", job], PATH=f"{short / 'bin'}:{os.environ['PATH']}", **job_variables)
    assert said in output
    assert "note:" not in output


# Load and cores


@pytest.mark.parametrize(
    ("busy", "threads", "workers", "line"),
    [
        (0.1, 2, 0, None),
        (1.0, 1, 0, None),
        (None, 2, 0, None),
        (
            1.0,
            2,
            0,
            "other programs use 1.0 of 2 cores, and this one would use 2; .* set "
            "OMP_NUM_THREADS=1, or wait",
        ),
        (2.0, 1, 0, "wait for them, or stop them"),
        (1.0, 1, 1, "would use 2; .* wait for them"),
        (
            0.0,
            8,
            0,
            "8 threads compute on 2 cores, which may take many times as long: set "
            "OMP_NUM_THREADS=2",
        ),
    ],
)
def test_a_busy_machine_is_told(monkeypatch, busy, threads, workers, line):
    monkeypatch.setattr(environment, "cores", lambda: 2)
    monkeypatch.setattr(environment, "busy_cores", lambda: busy)
    said = environment.load_warning(threads, workers)
    assert said is line is None or re.search(line, said)


def test_a_busy_machine_is_told_before_every_long_work(short, monkeypatch):
    monkeypatch.setattr(environment, "cores", lambda: 2)
    monkeypatch.setattr(environment, "busy_cores", lambda: 2.0)
    shutil.rmtree("stores/liver.zarr")
    for step in (("train-teacher", "liver"), ("cache-logits", "liver")):
        assert mtkd(*step).startswith(
            "warning: the machine is busy: other programs use 2.0 of 2 cores"
        )


def test_the_load_of_others_is_measured():
    assert environment.busy_cores() is None or 0 <= environment.busy_cores() < os.cpu_count() + 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_workers_are_as_many_as_the_cores_of_this_process(monkeypatch):
    from pipeline.machine import Machine
    from stages.cli import _machine

    monkeypatch.setattr(Machine, "torch_device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert _machine("cuda", None).workers == 3
    monkeypatch.setattr(environment, "_quota", lambda: 1.5)
    assert _machine("cuda", None).workers == 2


# Users


@needs_root
def test_a_user_without_a_name_or_a_home_is_none_the_worse(short):
    """As in ``docker run --user 12345``: nothing in /etc/passwd, and no place to keep settings."""
    capabilities = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    before = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *capabilities]
    before += [
        "env",
        *(
            word
            for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
            for word in ("-u", name)
        ),
    ]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no capabilities here")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        shutil.copytree(short, folder / "run")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 12345, 12345)
        os.chdir(folder / "run")
        for step in (("train-teacher", "liver"), ("report",)):
            started([*before, *COMMAND, *step], TMPDIR="/tmp")
    finally:
        os.chdir(short)
        shutil.rmtree(folder)


def test_processes_without_room_for_a_socket_are_spawned(monkeypatch):
    assert environment.clean_processes("math").get_start_method() == "forkserver"
    monkeypatch.setattr(environment, "use_short_sockets", lambda: False)
    assert environment.clean_processes("math").get_start_method() == "spawn"
