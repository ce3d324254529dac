"""What a user can mend is one line, in the words of whatever library says it."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from pipeline import training_errors
from pipeline.errors import (
    DamagedFileError,
    MismatchError,
    MissingFileError,
    MtkdError,
    NotFiniteError,
    TooLittleMemoryError,
)
from pipeline.training_errors import translated_errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of"
        ),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Caught torch.OutOfMemoryError in replica 0"),
        MemoryError(),
    ],
    ids=str,
)
def test_too_little_memory_is_one_line(error):
    with pytest.raises(TooLittleMemoryError) as caught, translated_errors():
        raise error
    assert str(caught.value) == "too little memory"


@pytest.mark.parametrize(
    "error",
    [
        MtkdError("a"),
        MissingFileError(Path("a")),
        DamagedFileError(Path("a"), "b"),
        MismatchError(Path("a"), "size", 1, [2]),
        NotFiniteError("a", ["b", "c"]),
        TooLittleMemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_another_process_keeps_its_facts(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
        "[127.0.0.1]:4321",
        "NCCL error in: ProcessGroupNCCL.cpp:3384, remote process exited or there was a network "
        "error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.",
        "[Rank 1] NCCL communicator was aborted on rank 1.",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, "
        "OpType=ALLREDUCE) ran for 600 s",
        "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server "
        "shutdown or crash?",
    ],
)
def test_another_process_that_ended_is_one_line(text):
    with (
        pytest.raises(MtkdError, match="another process of this run ended first"),
        translated_errors(),
    ):
        raise torch.distributed.DistBackendError(text)


@pytest.mark.parametrize(
    "text",
    ["all CUDA-capable devices are busy or unavailable", "no kernel image is available for it"],
)
def test_a_gpu_that_cannot_be_used_is_one_line(text):
    hints = "Search for `cudaErrorDevicesUnavailable' in the documentation."
    with pytest.raises(MtkdError, match=re.escape(f"({text})")) as caught, translated_errors():
        raise torch.AcceleratorError(f"CUDA error: {text}\n{hints}")
    assert hints not in str(caught.value)


@pytest.mark.parametrize(("free", "named"), [(64 * 2**20, True), (2**33, False), (None, False)])
def test_a_small_shared_memory_is_named_when_a_loader_process_ends(monkeypatch, free, named):
    monkeypatch.setattr(training_errors, "shared_memory", lambda: free)
    with (
        pytest.raises(MtkdError, match="a loader process ended by itself") as caught,
        translated_errors(),
    ):
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1")
    assert str(caught.value).endswith("--shm-size=1g, as /dev/shm has only 64 MiB free") is named
