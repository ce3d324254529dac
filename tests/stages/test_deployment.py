"""From a checkpoint to files for the operating room, and anatomy drawn on frames and videos."""

import gc
import json
import re
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from conftest import mtkd, write_png

from pipeline.export import load_exported, open_openvino
from pipeline.palette import colours_of
from pipeline.signal_stack import signal_stack
from pipeline.video import read_video

CHECKPOINT = "checkpoints/students/mtkd.safetensors"


def frame(number=0, size=(50, 70)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3)).astype(np.uint8)


def write_video(path, count=12, size=(48, 64), times=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            one = av.VideoFrame.from_ndarray(frame(i // 4, size), format="rgb24")
            one.pts, one.time_base = (times or [100 * k for k in range(count)])[i], Fraction(1, 1000)
            container.mux(stream.encode(one))
        container.mux(stream.encode())
    return path


@pytest.fixture
def exported(run):
    mtkd("export", CHECKPOINT, "--size", "96x64")
    return run / "exported"


def test_exported_files_say_what_they_are_and_answer_alike(exported):
    from pipeline.checkpoint import load_checkpoint

    answers = []
    for name in ("mtkd.onnx", "mtkd.xml"):
        segment, label = load_exported(exported / name)
        assert label.anatomies == ("liver", "colon")
        assert (label.frame_size, label.network_size) == ((64, 96), (32, 48))
        assert len(label.checkpoint) == 64
        assert label.mean == load_checkpoint(exported.parent / CHECKPOINT, "")[1].mean
        answers.append(segment(frame(size=(64, 96))))
    assert answers[0].shape == (2, 64, 96)
    assert (answers[0] != answers[1]).mean() < 1e-3


def test_int8_is_calibrated_and_its_cost_is_told(run):
    output = mtkd("export", CHECKPOINT, "--size", "96x64", "--int8")
    assert re.search(r"mtkd_int8.xml: Dice [\d.]+ instead of [\d.]+ in float32, on 6 test frames", output)
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
def test_every_family_can_be_exported(tmp_path, arch):
    from pipeline.export import Label, Segmenter, disagreement, write_onnx, write_openvino
    from pipeline.models import create_model

    segmenter = Segmenter(create_model(arch, 3).eval(), (72, 100), (64, 80))
    label = Label(arch, ("a", "b", "c"), (72, 100), (64, 80), (0.5,) * 3, (0.2,) * 3, "0" * 64)
    write_onnx(segmenter, label, tmp_path / "n.onnx")
    write_openvino(tmp_path / "n.onnx", label, tmp_path / "n.xml")
    for name in ("n.onnx", "n.xml"):
        segment, found = load_exported(tmp_path / name)
        assert found == label
        assert disagreement(segmenter, segment, [frame(size=(72, 100))]) == 0


def test_a_file_whose_masks_differ_is_not_delivered(run, monkeypatch):
    monkeypatch.setattr("stages.export.disagreement", lambda *_: 7)
    assert "not delivered: its masks differ from the checkpoint's in 7 pixels" in mtkd("export", CHECKPOINT, code=1)
    assert not (run / "exported" / "mtkd.onnx").exists()


def test_a_difference_is_seen():
    from pipeline.export import Segmenter, disagreement
    from pipeline.models import create_model

    segmenter = Segmenter(create_model("mininetv2", 1).eval(), (32, 32), (32, 32))
    assert disagreement(segmenter, lambda shown: np.zeros((1, 32, 32), bool), [frame(size=(32, 32))]) != disagreement(
        segmenter, lambda shown: np.ones((1, 32, 32), bool), [frame(size=(32, 32))]
    )


def test_what_export_refuses(run, tmp_path):
    assert "holds no PNG frames" in mtkd("export", CHECKPOINT, "--frames", str(tmp_path / "none"), code=1)
    assert "not WIDTHxHEIGHT" in mtkd("export", CHECKPOINT, "--size", "720p", code=2)
    assert "is missing" in mtkd("export", "nowhere.safetensors", code=1)
    (tmp_path / "other.onnx").write_bytes(b"no onnx")
    write_png(tmp_path / "f.png", frame())
    arguments = ["predict", str(tmp_path / "f.png"), "--output", "o", "--model", str(tmp_path / "other.onnx")]
    assert "no file that `mtkd export` wrote" in mtkd(*arguments, code=1)


def test_a_folder_of_frames_keeps_its_shape(run):
    write_png(run / "in" / "a" / "1.png", frame(1))
    cv2.imwrite(str(run / "in" / "2.jpg"), frame(2, (33, 41)))
    (run / "in" / "broken.png").write_bytes(b"nothing")
    output = mtkd("predict", "in", "--output", "out", "--model", CHECKPOINT)
    assert "broken.png: its content is no PNG" in output
    assert "1 broken frames were skipped" in output
    assert "liver: orange, colon: sky blue" in output
    assert cv2.imread("out/a/1.png").shape == (50, 70, 3)
    assert cv2.imread("out/2.png").shape == (33, 41, 3)


@pytest.mark.parametrize("model", [CHECKPOINT, "exported/mtkd.onnx", "exported/mtkd.xml"])
def test_masks_and_label_maps_agree_whatever_the_model_is(exported, model):
    write_png(exported.parent / "f.png", frame(3, (64, 96)))
    mtkd("predict", "f.png", "--output", "m", "--model", model, "--as", "masks")
    mtkd("predict", "f.png", "--output", "l", "--model", model, "--as", "labels", "--anatomy", "colon")
    colon = cv2.imread("m/f_colon.png", 0)
    assert set(np.unique(colon)) <= {0, 255}
    assert ((cv2.imread("l/f.png", 0) == 1) == (colon == 255)).all()


def test_a_video_keeps_its_times(run):
    times = [0, 100, 200, 350, 400, 700, 800, 900, 1000, 1100, 1200, 1500]
    write_video(run / "in.mp4", times=times)
    mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, "--anatomy", "liver")
    found = list(read_video(run / "out.mp4"))
    assert [round(1000 * f.time) for f in found] == times
    assert found[0].pixels.shape == (48, 64, 3)


def test_a_damaged_video_is_read_as_far_as_it_goes(run):
    path = write_video(run / "in.mkv", count=40)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\x55" * 400
    path.write_bytes(bytes(content))
    mtkd("predict", "in.mkv", "--output", "out.mp4", "--model", CHECKPOINT)
    assert 5 < len(list(read_video(run / "out.mp4"))) <= 40


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
    assert "No space left" in mtkd("predict", "in.mp4", "--output", "out.mp4", "--model", CHECKPOINT, code=1)
    assert len(list(read_video(run / "out.mp4"))) == 70


def test_what_predict_refuses(run):
    write_png(run / "f.png", frame())
    (run / "empty").mkdir()
    (run / "no.mp4").write_bytes(b"no video")
    known = "knows no spleen; it knows liver, colon"
    assert known in mtkd("predict", "f.png", "--output", "o", "--model", CHECKPOINT, "--anatomy", "spleen", code=1)
    assert "neither a frame" in mtkd("predict", "empty", "--output", "o", "--model", CHECKPOINT, code=1)
    assert "cannot be opened as a video" in mtkd(
        "predict", "no.mp4", "--output", "o.mp4", "--model", CHECKPOINT, code=1
    )
    assert "none of overlay" in mtkd("predict", "f.png", "--output", "o", "--as", "art", code=2)
    write_video(run / "in.mp4")
    assert "ends in .mp4" in mtkd("predict", "in.mp4", "--output", "o", "--model", CHECKPOINT, code=1)


def test_colours_are_named_and_apart():
    named = colours_of([f"organ {i}" for i in range(11)])
    assert len({colour for _, colour in named.values()}) == 11
    assert json.dumps(named)
