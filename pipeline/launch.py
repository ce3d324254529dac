"""Who starts the processes of a training: itself or torchrun.

No other variable of a cluster decides anything.
Lightning would look for SLURM, LSF and MPI, and take LOCAL_RANK for the sign that somebody else
starts the processes: one training on one device would end in a traceback or wait forever for
others, because of where it runs.
"""

import os
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from subprocess import Popen
from typing import Any

from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.errors import MtkdError

STARTED_BY = "MTKD_STARTED_BY"  # id of the process that started this one to share its batches
PATIENCE = 300.0  # seconds in which all processes of a training must have come
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Lightning reads these, and those that begin with LT_, before it looks at its arguments.
IGNORED = (*TORCHRUN, "GROUP_RANK", "NODE_RANK", "STANDALONE_PORT")
# How many processes a launcher has started, each with the same command.
COUNTS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "WORLD_SIZE": "another launcher",
}


@dataclass(frozen=True)
class Launch:
    """How the processes of a training come to be.

    Attributes:
        devices: processes on each machine.
        nodes: machines.
        by_torchrun: whether torchrun has started them.
        is_first: whether this process is the one that talks.
        note: a line for the screen on what was found and what is done, or nothing.
    """

    devices: int
    nodes: int = 1
    by_torchrun: bool = False
    is_first: bool = True
    note: str = ""


def plan_launch(devices: int, variables: Mapping[str, str]) -> Launch:
    """What the variables of the environment mean for a training.

    Args:
        devices: what ``--devices`` says.
        variables: of the environment.

    Raises:
        MtkdError: those of torchrun are not whole; a launcher has started several processes, and
            each of them would start several.
    """
    if variables.get(STARTED_BY) == str(os.getppid()):
        return Launch(devices, is_first=False)
    if "TORCHELASTIC_RUN_ID" in variables:
        return _of_torchrun(variables)
    return Launch(devices, note=_note(devices, variables))


def _of_torchrun(variables: Mapping[str, str]) -> Launch:
    missing = [name for name in TORCHRUN if not variables.get(name)]
    if missing:
        raise MtkdError(
            "TORCHELASTIC_RUN_ID says that torchrun started this process, but "
            f"{', '.join(missing)} is not set: unset TORCHELASTIC_RUN_ID, or start with torchrun"
        )
    local = int(variables["LOCAL_WORLD_SIZE"])
    nodes = int(variables["WORLD_SIZE"]) // local
    return Launch(local, nodes, by_torchrun=True, is_first=variables["RANK"] == "0")


def _note(devices: int, variables: Mapping[str, str]) -> str:
    for name, launcher in COUNTS.items():
        started = variables.get(name, "")
        if not started.isdecimal() or int(started) < 2:
            continue
        processes = f"{launcher} started {started} processes ({name}={started})"
        if devices > 1:
            raise MtkdError(
                f"{processes}, and each would start --devices {devices} of its own: start one "
                "process on each machine, by itself or by torchrun (docs/how-to/slurm.md)"
            )
        return f"{processes}; this one trains alone, they share no batch (docs/how-to/slurm.md)"
    tasks = variables.get("SLURM_NTASKS", "1")
    if tasks != "1":
        share = "is one process"
        if devices > 1:
            share = f"starts {devices} processes for --devices {devices}"
        return (
            f"the SLURM job has {tasks} tasks (SLURM_NTASKS={tasks}), which are not used: this "
            f"training {share}"
        )
    stray = [f"{name}={variables[name]}" for name in _ignored(variables)]
    return f"{', '.join(stray)}: ignored, as torchrun did not start this process" if stray else ""


def _ignored(variables: Mapping[str, str]) -> list[str]:
    return [name for name in variables if name in IGNORED or name.startswith("LT_")]


def forget(variables: MutableMapping[str, str]) -> None:
    """Drop what would decide unasked."""
    for name in _ignored(variables):
        del variables[name]


@contextmanager
def marked(variables: MutableMapping[str, str]) -> Iterator[None]:
    """The processes that are started meanwhile know that they belong to this one."""
    before = variables.get(STARTED_BY, "")
    variables[STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        variables[STARTED_BY] = before


def cluster_environment(launch: Launch) -> LightningEnvironment | TorchElasticEnvironment:
    """Where Fabric finds the ranks; given to it, so that it looks for nothing else."""
    return TorchElasticEnvironment() if launch.by_torchrun else LightningEnvironment()


class Processes(DDPStrategy):
    """DDP whose first process waits in Python for those that it started.

    Ctrl-C ends it, and so does its patience.
    """

    _store: TCPStore | None = None

    def setup_environment(self) -> None:
        """Meet, then go on as Lightning does.

        Raises:
            MtkdError: a process ended, or did not come in time.
        """
        started: Sequence[Popen[Any]] = getattr(self.launcher, "procs", ())
        environment = self.cluster_environment
        assert environment is not None
        try:
            self._store = meet(
                environment.local_rank(),
                self.num_processes,
                environment.main_address,
                environment.main_port,
                started,
            )
            super().setup_environment()
        except BaseException:
            for process in started:
                process.kill()
            raise


def meet(
    rank: int,
    processes: int,
    address: str,
    port: int,
    started: Sequence[Popen[Any]] = (),
    patience: float = PATIENCE,
) -> TCPStore:
    """Wait until all processes of a training are there.

    The first one waits, the others say that they have come.

    Args:
        rank: of this process.
        processes: how many share every batch.
        address: where the first one listens.
        port: where the first one listens.
        started: the others, which the first one started.
        patience: seconds.

    Returns:
        The store in which they met; of the first process torch's own will use it, as long as it is
        kept.

    Raises:
        MtkdError: one of them ended, or did not come in time.
    """
    try:
        store = TCPStore(
            address,
            port,
            is_master=rank == 0,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        )
        come = store.add("mtkd/come", 1)
        begin = time.monotonic()
        while rank == 0 and come < processes:
            _require_running(started)
            if time.monotonic() - begin > patience:
                raise MtkdError(
                    f"only {come} of {processes} processes came to {address}:{port} within "
                    f"{patience:.0f} s: their lines above may say why; is the machine busy? Start "
                    "again, with fewer --devices"
                )
            time.sleep(0.05)
            come = store.add("mtkd/come", 0)
    except RuntimeError as error:  # of torch, with the lines of its C++
        problem = str(error).splitlines()[0]
        raise MtkdError(
            f"the processes of this training can't meet at {address}:{port}: {problem}"
        ) from error
    return store


def _require_running(started: Sequence[Popen[Any]]) -> None:
    for process in started:
        if process.poll() is not None:
            raise MtkdError(
                f"a process of this training ended (exit status {process.returncode}) before it "
                "began: its own lines above say why, if it was not killed"
            )
