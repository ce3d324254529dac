"""However a batch is shared, it is the same batch; and what goes wrong is told in one line."""

import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import share_a_batch
import torch
from helpers import ROOT, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from pipeline.datasets import EpochBatches, FrameDataset, Share, clean_batches
from pipeline.depthwise import exact_depthwise
from pipeline.distillation import distilled
from pipeline.errors import (
    DamagedFileError,
    MissingFileError,
    MtkdError,
    NotFiniteError,
    TooLittleMemoryError,
)
from pipeline.files import Unchanged, write_atomically
from pipeline.inference import clean_inputs, predictions
from pipeline.machine import (
    Machine,
    computing,
    float32_products,
    make_fabric,
    make_loader,
    weights_format,
)
from pipeline.models import create_model
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import list_frames, load_frame
from pipeline.resume import Resume
from pipeline.settings import Distill, Splits
from pipeline.stopwatch import Stopwatch
from pipeline.training import Trainer, _Batch, supervised
from pipeline.training_errors import FiniteTerms, translated_errors


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 9), st.integers(1, 4), st.integers(1, 3))
def test_the_shares_of_all_processes_are_the_batch(frames, batch_size, ranks, pieces):
    whole = list(EpochBatches(frames, batch_size, 5))
    shares = [
        EpochBatches(frames, batch_size, 5, Share(rank, ranks, pieces)) for rank in range(ranks)
    ]
    assert all(len(list(share)) == len(share) == share.steps * pieces for share in shares)
    for step, batch in enumerate(whole):
        own = []
        for share in shares:
            sizes = share.sizes()[step]
            for keys, size in zip(
                list(share)[step * pieces : (step + 1) * pieces], sizes, strict=True
            ):
                assert len(keys) >= 2
                assert len(set(keys)) == len(keys)
                assert set(keys) <= set(batch)
                own += keys[:size]
        assert own == batch


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 4))
def test_every_validation_frame_is_seen_once(frames, batch_size, ranks):
    seen = [
        i
        for r in range(ranks)
        for b in clean_batches(frames, batch_size, Share(r, ranks))
        for _, i in b
    ]
    assert sorted(seen) == list(range(frames))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Eleven training frames in batches of four: 4, 4, 3; and some to validate on."""
    folder = tmp_path_factory.mktemp("prepared")
    root = write_dataset(folder / "dsad", share_a_batch.ANATOMIES, ("01", "02", "03"), frames=2)
    for path in (root / "spleen/01").glob("*00.png"):
        path.unlink()
    splits = Splits(val=[2], test=[])
    settings = PrepareSettings(root, share_a_batch.ANATOMIES, splits, (32, 48))
    prepare(settings, folder / "frames", folder / "labels")
    return folder


@pytest.fixture(scope="module")
def one_process(prepared):
    return share_a_batch.run(prepared, 1, 1)[1]


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-5)


def require_equal(told, expected):
    assert len(told["gradients"]) == len(expected["gradients"]) == 3
    for name, values in expected["terms"].items():
        close(told["terms"][name], values)
    for name, value in expected["norms"].items():
        close(told["norms"][name], value)
    assert told["dice"] == expected["dice"]
    assert None not in told["dice"].values()
    for step, gradients in enumerate(expected["gradients"]):
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                told["gradients"][step][name], gradient, rtol=1e-4, atol=1e-5
            )


def test_a_batch_in_two_pieces_is_the_same_batch(prepared, one_process):
    require_equal(share_a_batch.run(prepared, 1, 2)[1], one_process)


def environment():
    here = str(Path(__file__).parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), here]), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("launcher", "accumulate"), [("torchrun", 1), ("own", 2)])
def test_two_processes_equal_one(prepared, one_process, tmp_path, launcher, accumulate):
    """The last batch of three frames falls apart unevenly; with two pieces each, one of them is
    empty.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [sys.executable, *(torchrun if launcher == "torchrun" else [])]
    arguments = [prepared, tmp_path / "told", 2, accumulate]
    done = subprocess.run(
        [*command, share_a_batch.__file__, *map(str, arguments)], env=environment(), timeout=120
    )
    assert done.returncode == 0
    for rank in range(2):
        told = torch.load(tmp_path / f"told.{rank}")
        require_equal(told, one_process)
        # Three steps, each with the frames that have valid cells and with its terms; validation.
        assert (told["messages"], told["barriers"]) == (3 * 2 + 1, 0)


class Faulty(torch.utils.data.Dataset):
    """Loader processes that end, or that refuse a frame."""

    def __init__(self, fault):
        self.fault = fault

    def __getitem__(self, index):
        self.fault()
        return torch.zeros(1)


def killed():
    os.kill(os.getpid(), 9)


def refused():
    raise MtkdError("frame.png is odd: look at it")


def missing():
    load_frame(Path("data/prepared/frame.png"))


def damaged():
    load_frame(Path(__file__))


@pytest.mark.parametrize(
    ("fault", "kind", "line"),
    [
        (killed, MtkdError, "a loader process ended by itself"),
        (refused, MtkdError, "frame.png is odd: look at it"),
        (missing, MissingFileError, "data/prepared/frame.png is missing"),
        (damaged, DamagedFileError, f"{__file__} is damaged: it cannot be decoded as PNG"),
    ],
)
def test_a_loader_process_that_ends_is_reported_in_one_line(fault, kind, line):
    with pytest.raises(kind) as caught, translated_errors():
        list(make_loader(Faulty(fault), [[0]], 1))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind
    if kind is not MtkdError:
        assert caught.value.path == Path(line.partition(" is ")[0])
        assert str(caught.value) == line


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_loader_process_keeps_its_facts(workers):
    with pytest.raises(DamagedFileError) as caught:
        list(make_loader(Faulty(damaged), [[0]], workers))
    assert caught.value.path == Path(__file__)
    assert caught.value.reason.startswith("it cannot be decoded as PNG")


def test_too_little_memory_is_told_in_one_line():
    with pytest.raises(TooLittleMemoryError) as caught, translated_errors():
        torch.zeros(2**52)
    assert str(caught.value) == "too little memory"
    with pytest.raises(TooLittleMemoryError), translated_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size of tensor"), translated_errors():
        torch.zeros(2) + torch.zeros(3)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(MtkdError, match="--device mps: torch"):
        make_fabric(Machine("mps"), "32-true")


def test_files_that_change_are_noticed(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text("x")
    watch = Unchanged(files)
    watch.check()
    write_atomically(files[1], b"x")
    with pytest.raises(MtkdError, match="b changed while it was learnt from"):
        watch.check()
    files[0].unlink()
    with pytest.raises(MtkdError, match="a changed"):
        watch.check()


def in_precision(precision, monkeypatch):
    monkeypatch.setattr(
        share_a_batch,
        "SETTINGS",
        share_a_batch.SETTINGS.model_copy(update={"precision": precision}),
    )


def test_mixed_precision_stays_near(prepared, one_process, monkeypatch):
    in_precision("bf16-mixed", monkeypatch)
    told = share_a_batch.run(prepared, 1, 1)[1]
    torch.testing.assert_close(told["terms"], one_process["terms"], rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("scale", "after"), [(2.0**8, 2.0**8), (2.0**60, 2.0**57)])
def test_a_gradient_scaler_is_asked_in_every_step(prepared, one_process, scale, after):
    """Fabric gives a CPU none of its own. Where gradients overflow it halves the scale and leaves
    out the step.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    fabric = Fabric(
        accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    resume = Kept()
    told = share_a_batch.run(prepared, 1, 1, fabric=fabric, resume=resume)[1]
    torch.testing.assert_close(told["terms"], one_process["terms"], rtol=0.03, atol=0.03)
    assert scaler.get_scale() == resume.states[-1]["precision"]["scale"] == after


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(MtkdError, match="precision 16-mixed trains on a GPU alone") as caught:
        make_fabric(Machine("cpu"), "16-mixed")
    assert "\n" not in str(caught.value)


def test_tf32_is_float32_on_a_cpu(prepared, one_process, monkeypatch):
    in_precision("tf32", monkeypatch)
    told = share_a_batch.run(prepared, 1, 1)[1]
    assert told["terms"] == one_process["terms"]
    assert all(
        torch.equal(a[k], b[k])
        for a, b in zip(told["gradients"], one_process["gradients"], strict=True)
        for k in a
    )


def tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed", "16-mixed"])
def test_products_are_ieee_unless_tf32_is_asked_for(precision):
    before = tf32()
    assert before == (True, False)  # as PyTorch has it
    with float32_products(torch.device("cuda"), precision):
        assert tf32() == ((True, True) if precision == "tf32" else (False, False))
    assert tf32() == before
    with pytest.raises(KeyError), float32_products(torch.device("cuda"), precision):
        raise KeyError
    assert tf32() == before
    with float32_products(torch.device("cpu"), precision):
        assert tf32() == before


def test_training_and_inference_compute_as_the_precision_says(prepared, monkeypatch):
    seen = []

    @contextmanager
    def noted(device, precision):
        seen.append((device.type, precision))
        yield

    monkeypatch.setattr("pipeline.training.float32_products", noted)
    monkeypatch.setattr("pipeline.machine.float32_products", noted)
    in_precision("tf32", monkeypatch)
    share_a_batch.run(prepared, 1, 1)
    assert seen == [("cpu", "tf32")]
    frames = list_frames(prepared / "frames", prepared / "labels", "val", share_a_batch.ANATOMIES)[
        :2
    ]
    network = create_model("mininetv2", 3).eval()
    list(
        predictions(
            network, clean_inputs(frames), [range(1), range(1, 2)], "bf16-mixed", Machine("cpu")
        )
    )
    assert seen[1:] == [("cpu", "bf16-mixed")] * 2


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("tf32", "float32"), ("bf16-mixed", "bfloat16"), ("16-mixed", "float16")],
)
def test_inference_on_a_cpu_is_in_the_precision_that_was_asked_for(precision, dtype):
    network = create_model("mininetv2", 2).eval()
    with torch.inference_mode(), computing(torch.device("cpu"), precision):
        assert network(torch.zeros(1, 3, 32, 48)).dtype == getattr(torch, dtype)


def test_weights_are_contiguous_for_mixed_precision_on_a_gpu_alone():
    cases = [
        (device, precision)
        for device in ("cpu", "cuda")
        for precision in ("32-true", "tf32", "bf16-mixed", "16-mixed")
    ]
    contiguous = [
        case
        for case in cases
        if weights_format(torch.device(case[0]), case[1]) == torch.contiguous_format
    ]
    assert contiguous == [("cuda", "bf16-mixed"), ("cuda", "16-mixed")]


class Backend:
    """Computes what it is given as it is; counts graphs and calls."""

    def __init__(self, fault=None):
        self.fault, self.frames, self.calls = fault, [], 0

    def __call__(self, graph, inputs):
        if self.fault:
            raise self.fault
        self.frames += [
            len(tensor)
            for tensor in inputs
            if tensor.dim() == 4 and tensor.shape[1:] == (3, 32, 48)
        ]

        def compute(*values):
            self.calls += 1
            return graph(*values)

        return compute


@pytest.fixture
def compiled_by(monkeypatch):
    whole = torch.compile

    def use(backend):
        monkeypatch.setattr(
            torch,
            "compile",
            lambda module, **options: whole(module, **{**options, "backend": backend}),
        )
        torch.compiler.reset()

    yield use
    torch.compiler.reset()


def test_a_compiled_network_learns_the_same(prepared, one_process, compiled_by):
    """Of batches of 4, 4 and 3 frames the second is compiled: once, and none for the last one."""
    backend = Backend()
    compiled_by(backend)
    require_equal(share_a_batch.run(prepared, 1, 1, compiled=True)[1], one_process)
    assert (backend.frames, backend.calls) == ([4], 1)


def test_a_network_that_cannot_be_compiled_is_told_in_one_line(prepared, compiled_by):
    compiled_by(Backend(RuntimeError("no C compiler\nis here")))
    with pytest.raises(
        MtkdError, match=r"torch\.compile failed \(.*no C compiler is here.*without --compile"
    ) as caught:
        share_a_batch.run(prepared, 1, 1, compiled=True)
    assert "\n" not in str(caught.value)


class Kept:
    """In place of the file in which a run is kept."""

    def __init__(self, is_due=True):
        self.is_due, self.states = is_due, []

    def load(self):
        return None, ""

    def save(self, state):
        self.states.append(state)


@pytest.mark.parametrize(("is_due", "epochs"), [(True, [1, 2, 3]), (False, [3])])
def test_a_run_is_kept_when_it_is_due_and_at_its_end(prepared, monkeypatch, is_due, epochs):
    monkeypatch.setattr(
        share_a_batch, "SETTINGS", share_a_batch.SETTINGS.model_copy(update={"epochs": 3})
    )
    kept = Kept(is_due)
    share_a_batch.run(prepared, 1, 1, resume=kept)
    assert [len(state["history"]) for state in kept.states] == epochs


def test_keeping_a_run_takes_one_part_in_twenty(tmp_path, monkeypatch):
    now = [100.0]

    def slow(path, content):
        now[0] += 8

    monkeypatch.setattr("pipeline.resume.monotonic", lambda: now[0])
    monkeypatch.setattr("pipeline.resume.write_atomically", slow)
    resume, spent, epochs = Resume(tmp_path / "state.pt", "identity"), 0, []
    for epoch in range(100):
        now[0] += 7
        if resume.is_due:
            resume.save({})
            spent += 8
            epochs.append(epoch)
    assert epochs[:3] == [0, 23, 46]
    assert spent / (now[0] - 100) < 0.06


def test_shares_are_those_of_the_frames_counted_one_by_one(prepared):
    """Pieces of two, two and no frames, of which one has no valid cell."""
    valid = torch.ones(4, 2, 2, dtype=torch.bool)
    valid[1] = False
    objective = distilled(
        supervised(),
        Distill(temperature=1.0, weight=3.0, softmax="classes", grid="stores", reconcile=False),
    )
    sizes, pieces = [2, 2, 0], [valid[:2], valid[2:], valid[:1]]
    batch = _Batch([{"valid": piece} for piece in pieces], sizes, 4, full=True)
    fabric = SimpleNamespace(world_size=1)
    trainer = Trainer(fabric, None, None, None, objective, share_a_batch.SETTINGS, Stopwatch())
    found = trainer.shares(batch, batch.pieces)
    counted = [
        sum(bool(frame.any()) for frame in piece[:size])
        for piece, size in zip(pieces, sizes, strict=True)
    ]
    assert counted == [1, 2, 0]
    assert [float(share["kl_divergence"]) for share in found] == pytest.approx(
        [n / 3 for n in counted]
    )
    assert [share["cross_entropy"] for share in found] == [0.5, 0.5, 0]


@pytest.mark.parametrize("dilation", [2, 8])
def test_dilated_depthwise_gradients_hold_in_bfloat16(dilation):
    """Memory that was freed is full of NaN here, and none of it may turn up in a gradient."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=dilation, dilation=dilation, groups=128, bias=False)
    maps, pull = (
        torch.randn(4, 128, 24, 32).to(memory_format=torch.channels_last) for _ in range(2)
    )
    (expected,) = torch.autograd.grad(conv(maps), conv.weight, pull)
    full_of_nan = [torch.full((2**20,), math.nan) for _ in range(3)]
    del full_of_nan
    exact = exact_depthwise(torch.device("cpu"), "bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16), exact:
        answer = conv(maps)
    (found,) = torch.autograd.grad(answer, conv.weight, pull.to(answer.dtype))
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_a_divergence_that_is_no_number_stops_training(prepared, answer, monkeypatch):
    shape = (3, 2, 8, 12)
    monkeypatch.setattr(
        share_a_batch.Answers, "read", lambda *_: np.full(shape, answer, np.float16)
    )
    with pytest.raises(
        NotFiniteError, match=r"the kl_divergence is not finite .* in epoch 1, step 1: lower"
    ) as caught:
        share_a_batch.run(prepared, 1, 1)
    assert caught.value.terms == ("kl_divergence",)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_the_step_is_named_in_which_a_loss_was_no_number(prepared, lost, monkeypatch):
    """It is found out in the next step, or at the end of the epoch, and nothing is kept of it."""
    whole, calls, kept = share_a_batch.distilled, [], Kept()

    def broken(*arguments):
        objective = whole(*arguments)

        def terms(*of):
            calls.append(1)
            found = objective.terms(*of)
            return {
                **found,
                "cross_entropy": found["cross_entropy"] * (math.nan if len(calls) == lost else 1.0),
            }

        return replace(objective, terms=terms)

    monkeypatch.setattr(share_a_batch, "distilled", broken)
    with pytest.raises(
        MtkdError,
        match=rf"the cross_entropy is not finite \(liver, .*\) in epoch 1, step {lost}: lower",
    ):
        share_a_batch.run(prepared, 1, 1, resume=kept)
    assert len(calls) == min(lost + 1, 3)
    assert kept.states == []


def test_one_process_of_several_says_what_is_not_finite():
    silent, speaking = (
        FiniteTerms(["loss"], ["liver", "colon"], 4, speaks=speaks) for speaks in (False, True)
    )
    for finite in (silent, speaking):
        finite.judge()
        finite.add(
            7, {"loss": torch.tensor([1.0, math.inf]), "pixels": torch.tensor([math.nan, 0.0])}
        )
    with pytest.raises(SystemExit):
        silent.judge()
    with pytest.raises(MtkdError, match=r"the loss is not finite \(colon\) in epoch 5, step 7"):
        speaking.add(8, {"loss": torch.zeros(2)})


class Moment:
    """A GPU that works on what it is given, a second for each event, while the host goes on."""

    given, done = 0, 0

    def __init__(self, enable_timing=False):
        self.at = None

    def record(self):
        Moment.given += 1
        self.at = Moment.given

    def query(self):
        return self.at <= Moment.done

    def synchronize(self):
        Moment.done = max(Moment.done, self.at)

    def elapsed_time(self, end):
        assert end.query()
        return 1000.0 * (end.at - self.at)


def test_a_stopwatch_reads_the_clock_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Moment)
    stopwatch = Stopwatch(torch.device("cuda"))
    for _ in stopwatch.waiting("data", range(3)):
        with stopwatch.step("network"):
            Moment().record()
    assert Moment.done == 0  # nobody waited
    assert stopwatch.seconds == {"data": 4.0, "network": 6.0}
    assert str(stopwatch) == "data 40 %, network 60 %"


def test_a_stopwatch_on_a_cpu_counts_seconds(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("pipeline.stopwatch.perf_counter", lambda: float(next(now)))
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in stopwatch.waiting("data", range(2)):
        with stopwatch.step("network"):
            pass
    with pytest.raises(KeyError), stopwatch.step("network"):
        raise KeyError
    assert stopwatch.seconds == {"data": 3.0, "network": 3.0}
    assert str(stopwatch) == "data 50 %, network 50 %"


def test_frames_do_not_depend_on_who_loads_them(prepared):
    frames = list_frames(prepared / "frames", prepared / "labels", "train", share_a_batch.ANATOMIES)
    data = FrameDataset(frames, share_a_batch.ANATOMIES, 1)
    first, second = (
        list(make_loader(data, EpochBatches(len(frames), 4, 1), workers)) for workers in (0, 2)
    )
    for one, other in zip(first, second, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key])
