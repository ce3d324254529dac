"""From a checkpoint to files for the operating room, and anatomy drawn on frames and videos."""

import gc
import json
import os
import re
import resource
import struct
import sys
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from signal import SIGHUP, SIGTERM, getsignal

import av
import cv2
import numpy as np
import pytest
from helpers import mtkd, write_png

from pipeline.deployment.export import load_exported, open_openvino
from pipeline.deployment.overlay import numbered
from pipeline.deployment.palette import colours_of
from pipeline.deployment.signal_stack import signal_stack
from pipeline.deployment.video import VideoWriter, list_images, pixel_aspect, read_video
from pipeline.errors import MtkdError
from stages import export

# The matrix of an MP4 file's picture that is not turned.
UNTURNED = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
CHECKPOINT = "checkpoints/students/mtkd.safetensors"


def frame(number=0, size=(50, 70)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3)).astype(np.uint8)


def write_video(path, count=12, size=(48, 64), times=None, front=False):
    with av.open(str(path), "w", options={"movflags": "faststart"} if front else {}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            one = av.VideoFrame.from_ndarray(frame(i // 4, size), format="rgb24")
            one.pts, one.time_base = (
                (times or [100 * k for k in range(count)])[i],
                Fraction(1, 1000),
            )
            container.mux(stream.encode(one))
        container.mux(stream.encode())
    return path


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Tracing takes a fraction of the time; test_export.py compares the exporters."""
    monkeypatch.setattr("pipeline.deployment.onnx_graph.find_spec", lambda name: None)


@pytest.fixture
def exported(run):
    mtkd("export", CHECKPOINT, "--size", "96x64")
    return run / "exported"


@pytest.mark.parametrize(("gives", "layout"), [("labels", "nhwc"), ("margins", "nhwc-float32")])
def test_label_maps_and_margins_are_exported_packed_and_predicted_with(run, gives, layout):
    said = mtkd(
        "export", CHECKPOINT, "--size", "96x64", "--as", gives, "--layout", layout,
        "--bundle", "monai", "--bundle", "triton",
    )  # fmt: skip
    assert "for monai: mtkd_monai" in said
    for place in ("mtkd_monai/configs/inference.json", "mtkd_triton/mtkd/config.pbtxt"):
        assert (run / "exported" / place).is_file()
    again = mtkd("export", CHECKPOINT, "--size", "96x64", "--as", gives, "--bundle", "triton")
    assert "for triton: mtkd_triton" in again  # in place of the one before
    write_png(run / "f.png", frame(size=(64, 96)))
    maps = []
    for model in ("exported/mtkd.onnx", "exported/mtkd.xml", CHECKPOINT):
        arguments = ["--output", "o", "--as", "labels", "--one-organ", "--model", model]
        mtkd("predict", "f.png", *arguments, "--device", "cpu")
        maps.append(cv2.imread(str(run / "o" / "f.png"), cv2.IMREAD_GRAYSCALE))
    assert (maps[0] == maps[1]).mean() > 0.999
    assert (maps[0] == maps[2]).mean() > 0.99


def test_exported_files_say_what_they_are_and_answer_alike(exported):
    from pipeline.checkpoint import load_checkpoint

    answers = []
    for name in ("mtkd.onnx", "mtkd.xml"):
        segment, label = load_exported(exported / name)
        assert label.anatomies == ("liver", "colon")
        assert (label.frame_size, label.network_size) == ((64, 96), (32, 48))
        assert len(label.checkpoint) == 64
        assert label.mean == load_checkpoint(exported.parent / CHECKPOINT)[1].mean
        answers.append(segment(frame(size=(64, 96))))
    assert answers[0].shape == (2, 64, 96)
    assert (answers[0] != answers[1]).mean() < 1e-3


def test_a_file_that_was_changed_after_its_export_is_refused(exported, tmp_path):
    import onnx

    def refused(name, message):
        with pytest.raises(MtkdError, match=message) as caught:
            load_exported(tmp_path / name)
        assert "\n" not in str(caught.value)

    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "mtkd.bin").read_bytes()
    (tmp_path / "mtkd.bin").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    refused("mtkd.xml", "other weights than it was exported with")
    model = onnx.load(tmp_path / "mtkd.onnx")
    model.graph.initializer[3].raw_data = bytes(len(model.graph.initializer[3].raw_data))
    onnx.save(model, tmp_path / "other.onnx")
    refused("other.onnx", "other weights than it was exported with")

    model = onnx.load(tmp_path / "mtkd.onnx")
    props = {entry.key: entry.value for entry in model.metadata_props}
    label = json.loads(props["mtkd"])
    lacking = {key: value for key, value in label.items() if key != "mean"}
    for told, message in (
        (
            label | {"anatomies": ["liver"]},
            r"gives masks \(1, 2, 64, 96\), but says \(1, 1, 64, 96\)",
        ),
        (label | {"frame_size": [48, 96]}, "but says"),
        (label | {"anatomies": None}, "is not a complete exported file"),
        (lacking, "is not a complete exported file"),
        ([label], "is not a complete exported file"),
    ):
        onnx.helper.set_model_props(model, props | {"mtkd": json.dumps(told)})
        onnx.save(model, tmp_path / "told.onnx")
        refused("told.onnx", message)


def test_int8_is_calibrated_and_its_cost_is_told(run):
    output = mtkd("export", CHECKPOINT, "--size", "96x64", "--int8")
    assert re.search(
        r"mtkd_int8.xml: Dice [\d.]+ instead of [\d.]+ in float32, on 6 test frames", output
    )
    segment, label = load_exported(run / "exported" / "mtkd_int8.xml")
    float32, same = load_exported(run / "exported" / "mtkd.xml")
    assert label == same
    shown = frame(size=(64, 96))
    assert (segment(shown) == float32(shown)).mean() > 0.8
    assert b"i8" in (run / "exported" / "mtkd_int8.xml").read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal stack of Linux")
def test_deleted_models_leave_the_signal_stack(exported):
    before = signal_stack()
    models = [open_openvino(exported / "mtkd.xml") for _ in range(2)]
    while models:
        del models[0]
        gc.collect()
        assert (signal_stack().pointer, signal_stack().size) == (before.pointer, before.size)


@pytest.mark.parametrize("arch", ["segformer_b0", "deeplabv3_efficientnet_lite0"])
def test_every_family_can_be_exported(tmp_path, monkeypatch, arch):
    import nncf

    from pipeline.deployment.export import (
        ExportCard,
        disagreement,
        write_onnx,
        write_openvino,
    )
    from pipeline.deployment.segmenter import Segmenter
    from pipeline.models import create_model

    folder = tmp_path / "a, b"  # of which OpenVINO's converter makes two
    size, network_size = (71, 101), (61, 83)  # no stride divides these
    segmenter = Segmenter(create_model(arch, 3).eval(), size, network_size)
    label = ExportCard(arch, ("a", "b", "c"), size, network_size, (0.5,) * 3, (0.2,) * 3, "0" * 64)
    write_onnx(segmenter, label, folder / "n.onnx")
    write_openvino(folder / "n.onnx", label, folder / "n.xml")
    for name in ("n.onnx", "n.xml"):
        segment, found = load_exported(folder / name)
        assert found == label
        assert disagreement(segmenter, segment, [frame(size=size)]) == 0
    quantise, ways = nncf.quantize, []
    monkeypatch.setattr(
        nncf, "quantize", lambda *a, **k: ways.append(k["model_type"]) or quantise(*a, **k)
    )
    write_openvino(
        folder / "n.onnx", label, folder / "int8.xml", [frame(seed, size) for seed in range(4)]
    )
    assert ways == [nncf.ModelType.TRANSFORMER if "segformer" in arch else None]
    segment, found = load_exported(folder / "int8.xml")
    assert found == label
    assert segment(frame(size=size)).shape == (3, *size)


def test_what_an_earlier_export_left_is_named(tmp_path, capsys):
    (tmp_path / "a_triton").mkdir()
    (tmp_path / "a_int8.xml").touch()
    (tmp_path / "b_monai").mkdir()
    options = export.Options((48, 64))
    export._say_older(tmp_path, "a", options)
    assert capsys.readouterr().out.splitlines() == [
        "a_triton is of an earlier export: --bundle triton makes it anew",
        "a_int8.xml is of an earlier export: --int8 makes it anew",
    ]
    export._say_older(tmp_path, "a", replace(options, bundles=["triton"], int8=True))
    assert capsys.readouterr().out == ""


def test_a_file_whose_masks_differ_is_not_delivered(run, monkeypatch):
    monkeypatch.setattr("stages.export.disagreement", lambda *_: 7)
    assert "not delivered: its masks differ from the checkpoint's in 7 pixels" in mtkd(
        "export", CHECKPOINT, code=1
    )
    assert not list((run / "exported").iterdir())


@contextmanager
def files_of_at_most(size):
    """What a full disk does to whoever writes more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_export_without_room_leaves_the_last_one(exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with files_of_at_most(100_000):
        output = mtkd("export", CHECKPOINT, "--size", "96x64", code=1)
    assert re.search(r"error: .*mtkd.onnx cannot be written \(File too large\): make room", output)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_openvino_without_room_names_the_file(exported):
    from pipeline.deployment.export import write_openvino

    _, label = load_exported(exported / "mtkd.onnx")
    with (
        files_of_at_most(100_000),
        pytest.raises(MtkdError, match=r"again.xml cannot be written .*: make room"),
    ):
        write_openvino(exported / "mtkd.onnx", label, exported / "again.xml")


def test_what_is_wrong_with_a_model_is_told(exported):
    def refused(model):
        output = mtkd("predict", "f.png", "--output", "o", "--model", str(model), code=1)
        assert output.count("\n") == 1
        return output

    write_png(exported.parent / "f.png", frame())
    weights = exported / "mtkd.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "mtkd.bin is damaged: it is cut off, 1000 of " in refused("exported/mtkd.xml")
    weights.unlink()
    assert "mtkd.bin is missing: it holds the weights of exported/mtkd.xml" in refused(
        "exported/mtkd.xml"
    )
    (exported / "mtkd.xml").write_bytes(b"no xml")
    assert "mtkd.xml is not a complete exported file" in refused("exported/mtkd.xml")
    assert "params.yaml: expected a checkpoint (.safetensors) or an" in refused("params.yaml")
    assert "exported is a folder" in refused("exported")
    (exported / "cut.safetensors").write_bytes((exported.parent / CHECKPOINT).read_bytes()[:1000])
    for message in (
        refused("exported/cut.safetensors"),
        mtkd("export", "exported/cut.safetensors", code=1),
    ):
        assert "cut.safetensors is damaged" in message
        assert "train_student" not in message


def test_a_difference_is_seen():
    from pipeline.deployment.export import disagreement
    from pipeline.deployment.segmenter import Segmenter
    from pipeline.models import create_model

    segmenter = Segmenter(create_model("mininetv2", 1).eval(), (32, 32), (32, 32))
    assert disagreement(
        segmenter, lambda shown: np.zeros((1, 32, 32), bool), [frame(size=(32, 32))]
    ) != disagreement(segmenter, lambda shown: np.ones((1, 32, 32), bool), [frame(size=(32, 32))])


def test_what_export_refuses(run, tmp_path):
    assert "holds no PNG frames" in mtkd(
        "export", CHECKPOINT, "--frames", str(tmp_path / "none"), code=1
    )
    assert "not WIDTHxHEIGHT" in mtkd("export", CHECKPOINT, "--size", "720p", code=2)
    for size in ("0x0", "99999999x64"):
        assert "within 32 .. 8192" in mtkd("export", CHECKPOINT, "--size", size, code=2)
    missing = mtkd("export", "nowhere.safetensors", code=1)
    assert "nowhere.safetensors is missing: name a" in missing
    assert "train_student" not in missing
    (tmp_path / "other.onnx").write_bytes(b"no onnx")
    write_png(tmp_path / "f.png", frame())
    arguments = [
        "predict",
        str(tmp_path / "f.png"),
        "--output",
        "o",
        "--model",
        str(tmp_path / "other.onnx"),
    ]
    assert "is not a complete exported file" in mtkd(*arguments, code=1)


@pytest.fixture
def broken_onnxruntime(tmp_path, monkeypatch):
    """A package that is there, but whose import fails, as with a library of the system that is
    missing.
    """
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(
        "raise ImportError('libgomp.so.1:\\n not found')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)


def test_a_runtime_that_cannot_be_imported_is_reported_before_anything_is_done(
    broken_onnxruntime, tmp_path
):
    output = mtkd("export", "nowhere.safetensors", "--output", str(tmp_path / "exported"), code=1)
    assert output == (
        "error: onnxruntime is installed but cannot be imported (libgomp.so.1: not found). "
        "Run: pip install --force-reinstall onnxruntime\n"
    )
    assert not (tmp_path / "exported").exists()


def test_predict_reports_a_runtime_that_cannot_be_imported(exported, broken_onnxruntime):
    write_png(exported.parent / "f.png", frame())
    output = mtkd("predict", "f.png", "--output", "o", "--model", "exported/mtkd.onnx", code=1)
    assert output == (
        "error: exported/mtkd.onnx needs a package that cannot be imported (libgomp.so.1: not "
        "found). "
        "Run: pip install --force-reinstall onnx onnxruntime\n"
    )


def test_a_folder_of_frames_keeps_its_shape(run):
    write_png(run / "in" / "a" / "1.png", frame(1))
    cv2.imwrite(str(run / "in" / "2.jpg"), frame(2, (33, 41)))
    (run / "in" / "broken.png").write_bytes(b"nothing")
    output = mtkd("predict", "in", "--output", "out", "--model", CHECKPOINT)
    assert "broken.png: its content is not a PNG" in output
    assert "1 broken frame was skipped" in output
    assert "liver: orange, colon: sky blue" in output
    assert cv2.imread("out/a/1.png").shape == (50, 70, 3)
    assert cv2.imread("out/2.png").shape == (33, 41, 3)


@pytest.mark.parametrize("model", [CHECKPOINT, "exported/mtkd.onnx", "exported/mtkd.xml"])
def test_masks_and_label_maps_agree_whatever_the_model_is(exported, model):
    write_png(exported.parent / "f.png", frame(3, (64, 96)))
    by_model = ("--model", model, "--as")
    mtkd("predict", "f.png", "--output", "m", *by_model, "masks")
    mtkd("predict", "f.png", "--output", "all", *by_model, "labels")
    mtkd("predict", "f.png", "--output", "one", *by_model, "labels", "--anatomy", "colon")
    liver, colon = (cv2.imread(f"m/f_{name}.png", 0) for name in ("liver", "colon"))
    assert set(np.unique(colon)) <= {0, 255}
    drawn = cv2.imread("all/f.png", 0)
    assert ((drawn > 0) == (liver + colon > 0)).all()
    assert (liver[drawn == 1] == 255).all()
    assert (colon[drawn == 2] == 255).all()
    alone = cv2.imread("one/f.png", 0)  # its place in the model, not in the choice
    assert set(np.unique(alone)) <= {0, 2}
    assert ((alone == 2) >= (drawn == 2)).all()


def test_a_pixel_belongs_to_one_organ_whatever_the_model_is(run):
    write_png(run / "f.png", frame(3, (64, 96)))
    mtkd("export", CHECKPOINT, "--size", "96x64", "--one-organ", "--output", "alone")
    found = []
    for model in (CHECKPOINT, "alone/mtkd.onnx", "alone/mtkd.xml"):
        chosen = ("--model", model, "--as", "masks", "--one-organ")
        mtkd("predict", "f.png", "--output", "m", *chosen)
        found.append(np.stack([cv2.imread(f"m/f_{a}.png", 0) > 0 for a in ("liver", "colon")]))
        assert found[-1].sum(0).max() == 1
    assert max((masks != found[0]).mean() for masks in found) < 1e-3
    mtkd("predict", "f.png", "--output", "m", "--model", CHECKPOINT, "--as", "labels")
    drawn = cv2.imread("m/f.png", 0)
    assert (drawn == found[0][0] + 2 * found[0][1]).all()
    mtkd("export", CHECKPOINT, "--size", "96x64", "--output", "each")
    refused = mtkd(
        "predict", "f.png", "--output", "m", "--model", "each/mtkd.onnx", "--one-organ", code=1
    )
    assert "each/mtkd.onnx were decided one by one: export it with --one-organ" in refused


def test_a_video_keeps_its_times(run):
    times = [0, 100, 200, 350, 400, 700, 800, 900, 1000, 1100, 1200, 1500]
    write_video(run / "in.mp4", times=times)
    mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, "--anatomy", "liver")
    found = list(read_video(run / "out.mp4"))
    assert [round(1000 * f.time) for f in found] == times
    assert found[0].pixels.shape == (48, 64, 3)


def test_a_video_keeps_its_start(run):
    write_video(run / "in.mkv", count=3, times=[5000, 5100, 5300])
    mtkd("predict", "in.mkv", "--output", "out.mp4", "--model", CHECKPOINT)
    assert [float(f.time) for f in read_video(run / "out.mp4")] == [5.0, 5.1, 5.3]
    mtkd("predict", "in.mkv", "--output", "out", "--model", CHECKPOINT, "--as", "masks")
    expected = "frame,seconds\nframe000000,5.000000\nframe000001,5.100000\nframe000002,5.300000\n"
    assert (run / "out" / "times.csv").read_text() == expected
    assert (run / "out" / "frame000002_colon.png").exists()


def test_a_video_says_its_colours_and_a_time_given_twice_moves_no_other(tmp_path):
    writer = VideoWriter(tmp_path / "out.mp4", (48, 64), Fraction(25))
    colour = np.full((48, 64, 3), (180, 59, 49), np.uint8)
    for time in (0, 1, 1, 2, 3):
        writer.write(colour, Fraction(time, 25))
    writer.close()
    found = list(read_video(tmp_path / "out.mp4"))
    assert [float(f.time) for f in found] == pytest.approx([0, 0.04, 0.04, 0.08, 0.12], abs=1e-4)
    assert abs(found[0].pixels.astype(int) - colour).max() <= 3
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.color_primaries) == (
            1,
            1,
            1,
        )  # BT.709
    with pytest.raises(MtkdError, match="1x7 can't be a video"):
        VideoWriter(tmp_path / "small.mp4", (7, 1), Fraction(25))


def test_joined_videos_go_on_in_time_and_size(tmp_path):
    writer = VideoWriter(tmp_path / "out.mp4", (48, 64), Fraction(10))
    shown = [
        (5.0, (48, 64)),
        (5.125, (48, 64)),
        (0.0, (32, 40)),
        (0.125, (32, 40)),
        (None, (64, 80)),
        (7.0, (48, 64)),
    ]
    for time, size in shown:
        writer.write(frame(size=size), None if time is None else Fraction(time))
    assert not (tmp_path / "out.mp4").exists()
    writer.close()
    found = list(read_video(tmp_path / "out.mp4"))
    assert [float(f.time) for f in found] == [5.0, 5.125, 5.225, 5.325, 5.425, 7.0]
    assert {f.pixels.shape for f in found} == {(48, 64, 3)}
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_without_room_is_kept_as_far_as_it_goes(run):
    write_video(run / "in.mp4", count=150, size=(96, 128))
    mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT)
    needed = (run / "out.mp4").stat().st_size
    with files_of_at_most(needed * 3 // 4):
        output = mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, code=1)
    assert re.search(
        r"error: out.mp4 (cannot be written|holds \d+ of 150 frames).*: make room", output
    )
    assert "out.mp4 ends early: it holds what was written until then" in output
    with av.open("out.mp4") as container:  # as players do, who stop at the first broken frame
        assert 75 < len(list(container.decode(video=0))) < 150


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_video_that_is_not_whole_is_an_error(tmp_path, share):
    def write():
        writer = VideoWriter(tmp_path / "out.mp4", (96, 128), Fraction(10))
        try:
            for number in range(60):
                writer.write(frame(number // 4, (96, 128)), None)
        finally:
            writer.close()
        return (tmp_path / "out.mp4").stat().st_size

    needed = write()
    with (
        files_of_at_most(int(share * needed)),
        pytest.raises(MtkdError, match=r"out.mp4 .*: make room"),
    ):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_cut_video_is_told(run):
    content = write_video(run / "in.mp4", count=40, front=True).read_bytes()
    (run / "in.mp4").write_bytes(content[: len(content) * 2 // 3])
    output = mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT)
    assert re.search(r"in.mp4: the file tells of 40 frames, [123]\d could be read", output)


def test_what_is_cut_off_and_counts_nothing_is_told(run):
    content = write_video(run / "in.mkv", count=60).read_bytes()
    (run / "in.mkv").write_bytes(content[: len(content) * 2 // 3])
    output = mtkd("predict", "in.mkv", "--output", "out.mp4", "--model", CHECKPOINT)
    assert re.search(r"in.mkv: the file tells of about \d\d frames, \d\d could be read", output)
    cv2.imwrite("whole.jpg", frame(1))
    (run / "two").mkdir()
    (run / "two/whole.jpg").write_bytes((run / "whole.jpg").read_bytes())
    (run / "two/cut.jpg").write_bytes((run / "whole.jpg").read_bytes()[:-200])
    output = mtkd("predict", "two", "--output", "o", "--model", CHECKPOINT)
    assert "skipped: two/cut.jpg: cannot be decoded (image file is truncated" in output
    assert [path.name for path in (run / "o").iterdir()] == ["whole.png"]
    (run / "dir.mp4").mkdir()
    assert "overlays of a video are a file" in mtkd(
        "predict", "in.mkv", "--output", "dir.mp4", "--model", CHECKPOINT, code=1
    )


def test_no_input_is_overwritten(run):
    write_video(run / "in.mp4")
    write_png(run / "in" / "a.png", frame(1))
    write_png(run / "in" / "b.png", frame(2))
    before = {
        path: path.read_bytes()
        for path in (run / "in.mp4", run / "in" / "a.png", run / "in" / "b.png")
    }
    for source, output in (("in.mp4", "in/../in.mp4"), ("in", str(run / "in")), ("in/a.png", "in")):
        message = mtkd("predict", source, "--output", output, "--model", CHECKPOINT, code=1)
        assert "is an input and would be overwritten" in message
    assert {path: path.read_bytes() for path in before} == before
    cv2.imwrite("in/a.jpg", frame(1))
    message = mtkd("predict", "in", "--output", "out", "--model", CHECKPOINT, code=1)
    assert "in/a.jpg and in/a.png would both be written to out/a.png" in message
    assert not (run / "out").exists()


def test_colours_and_choice(run):
    write_png(run / "f.png", frame())
    (run / "bad.png").write_bytes(b"nothing")
    arguments = ["--output", "o", "--model", CHECKPOINT, "--anatomy", "colon", "--anatomy", "colon"]
    assert "\ncolon: sky blue\n" in "\n" + mtkd("predict", "f.png", *arguments)
    assert "2 = colon\n" in mtkd("predict", "f.png", *arguments, "--as", "labels")
    assert "bad.png: no frame of it can be decoded, nothing is written" in mtkd(
        "predict", "bad.png", *arguments, code=1
    )


def test_frames_in_flight_come_out_in_their_order(exported):
    """Two requests of OpenVINO work side by side; each frame gets its own masks."""
    run = exported.parent
    write_video(run / "in.mp4", count=24, size=(64, 96))
    arguments = ["--output", "o", "--as", "labels", "--model", "exported/mtkd.xml"]
    mtkd("predict", "in.mp4", *arguments)
    segment, _ = load_exported(exported / "mtkd.xml")
    frames = [frame.pixels for frame in read_video(run / "in.mp4")]
    files = sorted((run / "o").glob("*.png"))
    assert len(files) == len(frames) == 24
    assert len({frame.tobytes() for frame in frames}) > 4
    for file, pixels in zip(files, frames, strict=True):
        labels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert (labels == numbered(segment(pixels), (1, 2))).all(), file.name


def test_a_video_is_measured_beside_its_network(exported):
    run = exported.parent
    write_video(run / "in.mp4", count=6, size=(64, 96))
    said = mtkd("benchmark", "video", "in.mp4", "--model", "exported/mtkd.xml", "--repeats", "1")
    found = json.loads((run / "results/benchmark_video.json").read_text())
    assert (found["frames"], found["image_size"]) == (6, [64, 96])
    assert found["share"] == pytest.approx(
        found["frames_per_second"] / found["network_frames_per_second"], rel=0.02, abs=0.001
    )
    assert "6 frames -> results/benchmark_video.json" in said


def test_a_damaged_video_is_read_as_far_as_it_goes(run):
    path = write_video(run / "in.mkv", count=40)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\x55" * 400
    path.write_bytes(bytes(content))
    mtkd("predict", "in.mkv", "--output", "out.mp4", "--model", CHECKPOINT)
    assert 5 < len(list(read_video(run / "out.mp4"))) <= 40


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP])
def test_what_ends_a_program_leaves_a_playable_video(run, monkeypatch, number):
    write_video(run / "in.mp4", count=60)
    from stages import predict

    draw, calls = predict.draw, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), number)
        return draw(*arguments)

    before = getsignal(number)
    monkeypatch.setattr(predict, "draw", stop)
    assert "ends early" in mtkd(
        "predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, code=130
    )
    assert 35 < len(list(read_video(run / "out.mp4"))) < 60
    assert getsignal(number) == before


def test_a_lying_video_is_shown_upright_with_its_pixels_as_wide(tmp_path):
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        shown = np.zeros((48, 64, 3), np.uint8)
        shown[:, 32:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    assert pixel_aspect(source) == 2
    content = source.read_bytes()
    assert content.count(UNTURNED) == 2  # of the film and of its track, which comes second
    place = content.rindex(UNTURNED)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    source.write_bytes(content[:place] + turned + content[place + len(turned) :])
    (one,) = read_video(source)
    assert one.pixels.shape == (64, 48, 3)
    # Turned clockwise by a quarter: what was on the right is below.
    assert one.pixels[40:].mean() > 200 > 50 > one.pixels[:24].mean()
    assert pixel_aspect(source) == Fraction(1, 2)


def test_frames_of_a_data_set_are_not_its_masks(run):
    folder = run / "few" / "03"
    for name in (
        "image00.png",
        "mask00.png",
        "anno_1/mask00.png",
        "label00.png",
        "._image00.png",
        "mask07.png",
    ):
        write_png(folder / name, frame())
    assert [p.name for p in list_images(run / "few")] == ["image00.png", "mask07.png"]
    said = mtkd("export", CHECKPOINT, "--frames", "few")
    assert "same masks as the checkpoint on 2 frames" in said
    assert "exported by tracing: onnxscript" in said  # see the fixture


def test_quantising_without_a_labelled_test_frame(run):
    for index in (run / "data/prepared/frames/test").glob("*/index.csv"):
        header = index.read_text().splitlines()[0]
        index.unlink()  # which may be a link
        index.write_text(f"{header}\n")
    assert "no labelled test frames" in mtkd("export", CHECKPOINT, "--size", "96x64", "--int8")
    assert (run / "exported/mtkd_int8.xml").exists()


def test_a_stopped_video_is_playable(run, monkeypatch):
    write_video(run / "in.mp4", count=120)
    from stages import predict

    draw, calls = predict.draw, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) > 70:
            raise OSError(28, "No space left on device")
        return draw(*arguments)

    monkeypatch.setattr(predict, "draw", stop)
    assert "No space left" in mtkd(
        "predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, code=1
    )
    assert len(list(read_video(run / "out.mp4"))) == 70


def test_what_predict_refuses(run):
    write_png(run / "f.png", frame())
    (run / "empty").mkdir()
    (run / "no.mp4").write_bytes(b"no video")
    known = "knows no spleen; it knows liver, colon"
    assert known in mtkd(
        "predict", "f.png", "--output", "o", "--model", CHECKPOINT, "--anatomy", "spleen", code=1
    )
    assert "empty holds no frame" in mtkd(
        "predict", "empty", "--output", "o", "--model", CHECKPOINT, code=1
    )
    assert "cannot be opened as a video" in mtkd(
        "predict", "no.mp4", "--output", "o.mp4", "--model", CHECKPOINT, code=1
    )
    assert "pip install -e '.[deploy]'" in " ".join(mtkd("export", "--help").split())
    assert "frames go into a folder" in mtkd(
        "predict", "f.png", "--output", "o.png", "--model", CHECKPOINT, code=1
    )
    for verb in (
        ["predict", "f.png", "--model", CHECKPOINT],
        ["export", CHECKPOINT, "--frames", "."],
    ):
        assert "f.png is a file; name a folder" in mtkd(*verb, "--output", "f.png/o", code=1)
    assert "'art' is not one of" in mtkd("predict", "f.png", "--output", "o", "--as", "art", code=2)
    write_video(run / "in.mp4")
    assert "ends in .mp4" in mtkd(
        "predict", "in.mp4", "--output", "o", "--model", CHECKPOINT, code=1
    )


def test_colours_are_named_and_apart():
    named = colours_of([f"organ {i}" for i in range(11)])
    assert len({colour for _, colour in named.values()}) == 11
    assert json.dumps(named)
