"""The verbs that list and measure networks."""

import json

from typer.testing import CliRunner

from pipeline.models import ARCHITECTURES
from pipeline.models.sequential import SequentialDecoders
from stages.cli import app
from stages.reporting.paper_tables import table


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_models_lists_every_architecture_in_all_forms():
    rows = json.loads(run("models", "--json", "--decoders", "2"))
    assert [(row["name"], row["form"], row["decoders"]) for row in rows] == [
        (name, form, n)
        for name in ARCHITECTURES
        for form, n in (("separate", 1), ("shared", 2), ("shared_decoder", 2))
    ]
    star, square, one = (
        {row["name"]: row for row in rows if row["form"] == form}
        for form in ("shared", "separate", "shared_decoder")
    )
    for name in ARCHITECTURES:
        assert (
            square[name]["parameters"] < star[name]["parameters"] < 2 * square[name]["parameters"]
        )
        assert square[name]["all_parameters"] == 2 * square[name]["parameters"]
        assert 0 < star[name]["multiply_adds"] < square[name]["multiply_adds"]
        assert star[name]["paper_all_parameters"] is None  # published for eleven anatomies only
        assert one[name]["parameters"] < star[name]["parameters"]
        assert one[name]["multiply_adds"] < star[name]["multiply_adds"]
        assert one[name]["parameters"] < 1.02 * square[name]["parameters"]


def test_the_papers_tables_are_whole():
    for number, columns in ((1, 4), (2, 11)):
        rows = table(number)
        assert len(rows) == 18
        assert all(len(row) == columns for row in rows.values())
    assert table(1)["segformer_b3", "separate"]["dice"] == 69.7
    assert table(2)["mininetv2", "shared+mtkd"]["ureter"] == 41


def test_networks_are_measured_in_both_forms(tmp_path, monkeypatch):
    from stages.benchmarks import networks

    monkeypatch.setattr(networks, "SHAPES", {"train": (2, (32, 32)), "infer": (1, (64, 64))})
    output = tmp_path / "b.json"
    run(
        "benchmark",
        "networks",
        "--arch",
        "mininetv2",
        "--decoders",
        "2",
        "--repeats",
        "1",
        "--output",
        str(output),
    )
    found = json.loads(output.read_text())
    assert [(c["task"], c["precision"]) for c in found["cases"]] == [
        ("train", "32-true"), ("train", "bf16-mixed"), ("infer", "32-true"), ("infer",
        "bf16-mixed"),
    ]  # fmt: skip
    for case in found["cases"]:
        assert case["looped"]["milliseconds"] > 0 < case["joined"]["milliseconds"]
        assert case["looped"]["peak_mib"] >= 0
    assert found["logit_difference"]["mininetv2"] < 1e-4
    assert found["machine"]["threads"] >= 1


def test_a_looped_network_has_the_same_parameters():
    from pipeline.models import create_model

    network = create_model("segformer_b0", 3)
    count = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in SequentialDecoders(network).parameters()) == count


def test_wrong_usage_is_told():
    assert "none of run, networks, store" in run("benchmark", "speed", code=2)
    assert "is not one of" in run("benchmark", "networks", "--arch", "resnet", code=2)
