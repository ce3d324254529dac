"""What is exported gives the masks of PyTorch, whatever the sizes."""

import os
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pipeline.decision import label_map, one_organ
from pipeline.deployment.bundles import write_bundle
from pipeline.deployment.export import (
    ExportCard,
    disagreement,
    load_exported,
    open_onnx,
    open_openvino,
    runtime_of,
    write_onnx,
    write_openvino,
)
from pipeline.deployment.onnx_graph import export_onnx, exporters
from pipeline.deployment.segmenter import GIVES, LAYOUTS, Segmenter, as_batch
from pipeline.models import create_model
from pipeline.png_files import write_png
from stages.export import _reason


def sizes(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


def balanced_segmenter(arch, frame, network_size):
    """With random weights, and logits that decide for the anatomy in half of the frame."""
    torch.manual_seed(0)
    segmenter = Segmenter(create_model(arch, 2), frame.shape[:2], network_size).eval()
    with torch.no_grad():
        margins = segmenter.margins(torch.from_numpy(as_batch(frame)))[0]
        for head, margin in zip(segmenter.network.heads, margins, strict=True):
            spread = margin.std().clamp(min=1e-3)
            head.classifier.weight /= spread
            head.classifier.bias /= spread
            head.classifier.bias[1] -= margin.median() / spread
    return segmenter


# Sizes are (height, width). Two pairs are explicit: a tall frame that no stride divides, and a
# network that sees less than the smallest size of any family. The first pair that is drawn is the
# smallest, 32 x 32.
@pytest.mark.parametrize("arch", ["segformer_b0", "mininetv2", "deeplabv3_efficientnet_lite0"])
@example(frame_size=(77, 45), network_size=None)
@example(frame_size=(47, 61), network_size=(5, 11))
@given(frame_size=sizes(32, 110), network_size=st.none() | sizes(1, 110))
@settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would export for minutes
    report_multiple_bugs=False,
)
def test_every_size_is_exported_exactly(tmp_path_factory, arch, frame_size, network_size):
    frame = np.random.default_rng(0).integers(0, 255, (*frame_size, 3)).astype(np.uint8)
    segmenter = balanced_segmenter(arch, frame, network_size or frame_size)
    file = tmp_path_factory.mktemp("export") / "network.onnx"
    # The other exporter takes ten times as long, and has a test below.
    frame_of_zeros = torch.zeros(1, 3, *frame_size, dtype=torch.uint8)
    export_onnx(segmenter, frame_of_zeros, file, exporter="tracing")
    session, compiled = open_onnx(file), open_openvino(file)

    def onnx_masks(pixels):
        return session.run(None, {"frame": as_batch(pixels)})[0][0] > 0

    def openvino_masks(pixels):
        return compiled(as_batch(pixels))[0][0] > 0

    assert disagreement(segmenter, onnx_masks, [frame]) == 0
    assert disagreement(segmenter, openvino_masks, [frame]) == 0


@pytest.mark.parametrize("size", [(90, 130), (31, 44), (20, 17)])
def test_a_label_map_is_the_arg_max_of_enlarged_margins(size):
    margins = torch.randn(1, 5, 31, 44, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(margins, size=size, mode="bilinear", align_corners=False)
    expected = one_organ(full)[0].numpy()
    planes = torch.cat([torch.zeros_like(full[:, :1]), full], 1).topk(2, dim=1).values[0]
    decided = (planes[0] - planes[1] > 1e-4).numpy()
    labels = label_map(margins[0].numpy(), size)
    assert labels.dtype == np.uint8
    assert (labels == expected)[decided].all()
    assert decided.mean() > 0.99


@pytest.mark.parametrize("grad", [False, True])
def test_a_pixel_of_one_organ_is_the_arg_max_over_nothing_and_the_margins(grad):
    torch.manual_seed(3)
    network = create_model("mininetv2", 3).eval()
    segmenter = Segmenter(network, (60, 90), (48, 64), one_organ=True).eval()
    frame = torch.randint(0, 256, (1, 3, 60, 90), dtype=torch.uint8)
    with torch.set_grad_enabled(grad):
        masks = segmenter(frame)
        margins = segmenter.margins(frame)
    planes = torch.cat([torch.zeros(1, 1, 60, 90), margins], 1)
    winner = planes.argmax(1)
    for number in range(3):
        assert torch.equal(masks[:, number].long(), (winner == number + 1).long())
    assert 0 < masks.sum() < masks[:, 0].numel()


def exported(folder, gives, layout, exporter="tracing"):
    """An ONNX and an OpenVINO file of a small network, with what they were made from."""
    size, network_size = (71, 101), (61, 83)  # no stride divides these
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    plain = balanced_segmenter("mininetv2", frame, network_size)
    one_organ = gives == "labels"
    segmenter = Segmenter(
        plain.network, size, network_size, one_organ=one_organ, gives=gives, layout=layout
    )
    card = ExportCard(
        "mininetv2", ("a a", "b"), size, network_size, (0.5,) * 3, (0.2,) * 3, "0" * 64, one_organ,
        gives, layout,
    )  # fmt: skip
    write_onnx(segmenter, card, folder / "n.onnx", exporter)
    write_openvino(folder / "n.onnx", card, folder / "n.xml")
    return segmenter, card, frame


SHAPES = {"masks": [1, 2, 71, 101], "labels": [1, 71, 101], "margins": [1, 3, 31, 42]}
INPUTS = {
    "nchw": ([1, 3, 71, 101], "tensor(uint8)"),
    "nhwc": ([1, 71, 101, 3], "tensor(uint8)"),
    "nhwc-float32": ([1, 71, 101, 3], "tensor(float)"),
}


@pytest.mark.parametrize(
    ("gives", "layout"),
    [*((g, "nchw") for g in GIVES), *(("labels", each) for each in LAYOUTS[1:])],
)
def test_every_kind_of_file_decides_as_the_checkpoint(tmp_path, gives, layout):
    segmenter, card, frame = exported(tmp_path, gives, layout)
    session = open_onnx(tmp_path / "n.onnx")
    given, output = session.get_inputs()[0], session.get_outputs()[0]
    assert (given.shape, given.type) == INPUTS[layout]
    assert (output.name, output.shape) == (gives, SHAPES[gives])
    for name in ("n.onnx", "n.xml"):
        run, found = load_exported(tmp_path / name)
        assert found == card
        masks = run(frame)
        assert 0 < masks.mean() < 1
        assert disagreement(segmenter, run, [frame]) == 0


def test_margins_have_an_empty_plane_and_are_decided_either_way(tmp_path):
    segmenter, _, frame = exported(tmp_path, "margins", "nchw")
    planes = open_onnx(tmp_path / "n.onnx").run(None, {"frame": as_batch(frame)})[0]
    assert planes.dtype == np.float32
    assert not planes[:, 0].any()
    with torch.no_grad():
        native = segmenter(torch.from_numpy(as_batch(frame))).numpy()
    np.testing.assert_allclose(planes, native, atol=1e-4)
    alone, _ = load_exported(tmp_path / "n.onnx")
    exclusive, _ = load_exported(tmp_path / "n.onnx", one_organ=True)
    assert alone(frame).sum(0).max() == 2  # both anatomies claim a pixel
    assert exclusive(frame).sum(0).max() == 1
    assert (exclusive(frame).any(0) == alone(frame).any(0)).all()
    larger = np.ascontiguousarray(np.repeat(frame, 2, axis=0))
    assert exclusive(larger).shape == (2, 142, 101)


@pytest.mark.parametrize("exporter", exporters())
@pytest.mark.parametrize(
    ("arch", "shared"),
    [("segformer_b0", True), ("mininetv2", False), ("deeplabv3_efficientnet_lite0", False)],
)
def test_every_exporter_writes_the_same_masks(tmp_path, exporter, arch, shared):
    torch.manual_seed(0)
    network = create_model(arch, 3, shared=shared).eval()
    segmenter = Segmenter(network, (71, 101), (61, 83)).eval()
    frame = np.random.default_rng(0).integers(0, 255, (71, 101, 3)).astype(np.uint8)
    file = export_onnx(
        segmenter, torch.from_numpy(as_batch(frame)), tmp_path / "n.onnx", exporter=exporter
    )
    session = open_onnx(file)
    assert (
        disagreement(
            segmenter,
            lambda shown: session.run(None, {"frame": as_batch(shown)})[0][0] > 0,
            [frame],
        )
        == 0
    )


def test_a_network_answers_after_an_export_as_before(tmp_path):
    """Constants that are made once are made of numbers, and not of what an exporter traces with."""
    segmenter, _, frame = exported(tmp_path, "masks", "nchw", exporters()[0])
    with torch.no_grad():
        assert segmenter(torch.from_numpy(as_batch(frame))).numpy().shape == (1, 2, 71, 101)


def test_without_onnxscript_tracing_exports(monkeypatch):
    assert exporters() == ("torch.export", "tracing")
    monkeypatch.setattr("pipeline.deployment.onnx_graph.find_spec", lambda name: None)
    assert exporters() == ("tracing",)


# --- for other platforms ---


def test_openvinos_model_api_reads_labels_and_margins(tmp_path):
    models = pytest.importorskip("model_api.models")
    _, _, frame = exported(tmp_path, "margins", "nchw")
    model = models.SegmentationModel.create_model(str(tmp_path / "n.xml"))
    assert [model.get_label_name(i) for i in range(2)] == ["a_a", "b"]
    model.params.return_soft_prediction = False
    found = model(frame)
    found = getattr(found, "resultImage", found)
    assert set(np.unique(found)) <= {0, 1, 2}
    planes = open_onnx(tmp_path / "n.onnx").run(None, {"frame": as_batch(frame)})[0][0]
    small = found[:: 71 // 31 + 1, :: 101 // 42 + 1]
    assert small.size
    assert (
        np.bincount(found.ravel(), minlength=3).argmax()
        == np.bincount(planes.argmax(0).ravel(), minlength=3).argmax()
    )


def test_model_info_stands_in_the_file(tmp_path):
    exported(tmp_path, "labels", "nchw")
    text = (tmp_path / "n.xml").read_text()
    assert '<labels value="a_a b"' in text
    assert '<model_type value="Segmentation"' in text


def test_monai_runs_its_bundle(tmp_path):
    monai = pytest.importorskip("monai.bundle")
    _, card, frame = exported(tmp_path, "labels", "nchw")
    bundle = write_bundle("monai", tmp_path / "n.onnx", card, tmp_path)
    (bundle / "frames").mkdir()
    write_png(bundle / "frames" / "f.png", frame)
    parser = monai.ConfigParser()
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    outputs = parser.get("_meta_")["network_data_format"]["outputs"]
    assert outputs["labels"]["shape"] == SHAPES["labels"]
    monai.run(
        run_id="run",
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )
    run, _ = load_exported(tmp_path / "n.onnx")
    labels = np.load(bundle / "eval" / "f.npy")
    assert (labels == np.arange(1, 3)[:, None, None]).tolist() == run(frame).tolist()


def test_a_triton_repository_names_shapes_types_and_labels(tmp_path):
    _, card, _ = exported(tmp_path, "margins", "nhwc-float32")
    bundle = write_bundle("triton", tmp_path / "n.onnx", card, tmp_path)
    text = (bundle / "n" / "config.pbtxt").read_text()
    assert 'name: "frame" data_type: TYPE_FP32 dims: [1, 71, 101, 3]' in text
    assert 'name: "margins" data_type: TYPE_FP32 dims: [1, 3, 31, 42]' in text
    assert (bundle / "n" / "labels.txt").read_text().split("\n") == ["none", "a a", "b", ""]
    assert (bundle / "n" / "1" / "model.onnx").read_bytes() == (tmp_path / "n.onnx").read_bytes()


def test_the_runtime_and_precision_of_a_file(tmp_path):
    for kind, expected in (("Convolution", "float32"), ("FakeQuantize", "int8")):
        file = tmp_path / f"{kind}.xml"
        file.write_text(f'<net><layer id="1" type="{kind}"/></net>')
        assert runtime_of(file) == f"OpenVINO, {expected}"
    assert runtime_of(tmp_path / "a.onnx") == "ONNX Runtime, float32"


def test_ctrl_c_stops_an_exporter_that_takes_it_for_an_error(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("failed to export") from None

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(torch.nn.Identity(), torch.zeros(1), tmp_path / "a.onnx")
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(torch.nn.Identity(), torch.zeros(1), tmp_path / "a.onnx")


def test_why_an_exporter_failed_is_told_without_colours():
    hint = RuntimeError("\x1b[96mThis is step 1/3\x1b[0m of exporting")
    hint.__cause__ = ValueError("\x1b[1mno such\n  operator\x1b[0m")
    assert _reason(hint) == "no such operator"
