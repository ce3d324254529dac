"""What the stages do with GPUs, as far as a machine without one can tell: memory that is too little, who gets which."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import mtkd

from pipeline.machine import Machine
from stages import benchmark_all

STUDENT = "checkpoints/students/mtkd.safetensors"


@pytest.mark.parametrize(
    ("inside", "command", "remedy"),
    [
        ("stages.training_run.fit", ["train-teacher", "liver"], "--accumulate 2 computes a batch in two pieces"),
        ("stages.cache_logits.answers", ["cache-logits", "liver"], "lower cache.batch_size"),
        ("stages.store_tools.answers", ["cache", "verify", "liver", "--recompute", "1"], "choose another --device"),
        ("stages.evaluate.evaluate", ["evaluate"], "lower evaluate.batch_size"),
        ("stages.evaluate_folder.evaluate", ["evaluate", "--checkpoint", STUDENT, "--data"], "choose another --device"),
        ("stages.predict._model", ["predict", "--output", "out"], "give it smaller frames"),
        ("stages.benchmark_store._writing", ["benchmark", "store"], "choose another --device"),
    ],
)
def test_too_little_memory_is_one_line_in_every_stage(run, monkeypatch, inside, command, remedy):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of")

    monkeypatch.setattr(inside, fail)
    data = yaml.safe_load((run / "params.yaml").read_text())["data"]["root"]
    more = {"predict": ["x.png"]}.get(command[0], [data] if command[-1] == "--data" else [])
    if command == ["cache-logits", "liver"]:
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace("views: 0", "views: 1"))
    output = mtkd(*command, *more, code=1)
    assert output.splitlines()[-1].startswith(f"error: too little memory: {remedy}")


def test_a_row_that_does_not_fit_says_so_and_the_others_are_measured(run, monkeypatch):
    real = benchmark_all.try_turns

    def without_joined(subjects, *rest):
        timings = iter(real([subject for subject in subjects if subject.form == "looped"], *rest))
        return [next(timings) if subject.form == "looped" else None for subject in subjects]

    monkeypatch.setattr(benchmark_all, "try_turns", without_joined)
    said = []
    monkeypatch.setattr(benchmark_all, "say", said.append)
    benchmark_all.run(["mininetv2"], ["PyTorch"], 2, (64, 96), 1, Path("all.json"), Machine("cpu"))
    rows = {
        (row["form"], row["precision"], row["decoding"]): row
        for row in json.loads(Path("all.json").read_text())["rows"]
    }
    assert rows["shared", "float32", "joined"]["problem"] == "out of memory"
    assert rows["shared", "float32", "joined"]["milliseconds"] is None
    assert rows["shared", "float32", "looped"]["problem"] is None
    assert rows["shared", "float32", "looped"]["milliseconds"] > 0
    assert "mininetv2 shared PyTorch float32 joined: out of memory" in said
