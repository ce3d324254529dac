"""``mtkd predict`` on what people have: links, foreign formats, damaged files."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from helpers import mtkd, write_png
from PIL import Image

from pipeline.deployment.runner import LaunchError, Runner
from pipeline.deployment.segmenter import Segmenter
from pipeline.deployment.video import InputFrame, list_images, pixel_aspect, read_images, read_video
from pipeline.models import create_model
from pipeline.models.frozen import Frozen
from stages.shared import frozen_network
from stages.shared.frozen_network import FrozenNetwork

TEACHER = "checkpoints/teachers/liver.safetensors"


def frame(number=0, size=(48, 64)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3)).astype(np.uint8)


def predict(source, output="out"):
    return mtkd("predict", str(source), "--model", TEACHER, "--output", output)


def test_linked_folders_are_entered_once(run):
    write_png(run / "elsewhere" / "a.png", frame())
    write_png(run / "frames" / "b.png", frame())
    (run / "frames" / "linked").symlink_to(run / "elsewhere")
    (run / "elsewhere" / "back").symlink_to(run / "frames")  # a circle
    (run / "frames" / "second").symlink_to(run / "elsewhere")
    output = predict("frames")
    assert sorted(p.relative_to(run / "out").as_posix() for p in (run / "out").rglob("*.png")) == [
        "b.png", "linked/a.png",
    ]  # fmt: skip
    assert "read once, though there under two names: frames/linked/back, frames/second" in output
    assert "not read" not in output


def test_what_systems_leave_is_passed_over(tmp_path):
    write_png(tmp_path / "frames" / "a.png", frame())
    for left in ("._a.png", "@eaDir/a.png", ".Trashes/b.png", "Thumbs.db", "$RECYCLE.BIN/c.png"):
        write_png(tmp_path / "left.png", frame())
        (tmp_path / "frames" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "left.png").rename(tmp_path / "frames" / left)
    assert list_images(tmp_path / "frames") == [tmp_path / "frames" / "a.png"]


def test_what_is_not_read_is_named(run):
    write_png(run / "frames" / "a.png", frame())
    for name in ("b.webp", "c.webp", "d.gif", "e.mp4"):
        (run / "frames" / name).write_bytes(b"")
    for name in ("f.png", "g"):
        (run / "frames" / name).symlink_to("nowhere")
    output = predict("frames")
    assert (
        "not read: 2 .webp (frames/b.webp, frames/c.webp), 1 .gif (frames/d.gif), 1 .mp4 "
        "(frames/e.mp4)" in output
    )
    assert "2 links to nothing (frames/f.png, frames/g)" in output
    assert "skipped" not in output
    assert "-> out\n" in output


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "nowhere does not exist: name a frame, a folder of frames or a video"),
        ("nowhere.png", "nowhere.png does not exist"),
        ("nowhere.mp4", "nowhere.mp4 does not exist"),
        ("empty", "empty holds no frame (.png, .jpg"),
        ("videos", "videos holds no frame (.png, .jpg"),
    ],
)
def test_an_input_without_frames_says_what_is_wrong(run, source, says):
    (run / "empty").mkdir()
    (run / "videos").mkdir()
    (run / "videos" / "a.mp4").write_bytes(b"")
    output = "out.mp4" if source.endswith(".mp4") else "out"
    said = mtkd("predict", source, "--model", TEACHER, "--output", output, code=1)
    assert says in said
    assert ("not read: 1 .mp4 (videos/a.mp4)" in said) is (source == "videos")


def test_one_frame_that_its_decoder_cannot_bear_ends_no_run(run, monkeypatch):
    for name in "abcd":
        write_png(run / "frames" / f"{name}.png", frame())
    Image.fromarray(frame(size=(200, 200))).save(run / "frames" / "huge.bmp")
    Image.fromarray(frame()).save(
        run / "frames" / "pages.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    (run / "frames" / "text.jpg").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    output = predict("frames")
    assert "huge.bmp: cannot be decoded (Image size (40000 pixels) exceeds limit" in output
    assert "pages.tif: holds 2 pictures, expected one" in output
    assert "text.jpg: cannot be decoded" in output
    assert len(list((run / "out").glob("*.png"))) == 4


def test_a_turned_tiff_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(frame()).save(tmp_path / "turned.tif", exif=exif)
    (shown,) = read_images([tmp_path / "turned.tif"])
    assert isinstance(shown, InputFrame)
    assert shown.pixels is not None, shown.problem
    assert shown.pixels.shape in ((48, 64, 3), (64, 48, 3))


@pytest.fixture
def video(tmp_path):
    """Intra-coded frames: each packet stands for itself."""

    def video(name, count=6):
        with av.open(f"file:{tmp_path / name}", "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.codec_context.time_base = Fraction(1, 10)
            for i in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")))
            container.mux(stream.encode())
        return tmp_path / name

    return video


def test_a_video_whose_first_frame_is_broken_is_read_behind_it(run, video):
    path = video("first.avi")
    content = bytearray(path.read_bytes())
    begin = content.index(b"00dc", content.index(b"movi"))
    length = int.from_bytes(content[begin + 4 : begin + 8], "little")
    content[begin + 8 : begin + 8 + length] = bytes(length)
    path.write_bytes(content)
    shown = list(read_video(path))
    assert [one.pixels is None for one in shown] == [True, False, False, False, False, False]
    assert pixel_aspect(path) == 1
    assert "1 broken frame was skipped" in predict(path, "out.mp4")
    assert len(list(read_video(run / "out.mp4"))) == 5


def test_a_colon_in_a_name_is_no_protocol(run, video):
    video("surgery 12:30.avi").rename(run / "surgery 12:30.avi")
    predict("surgery 12:30.avi", "out 12:30.mp4")
    assert len(list(read_video(run / "out 12:30.mp4"))) == 6


def test_a_name_that_is_too_long_stops_no_folder_in_its_middle(run):
    write_png(run / "frames" / "a.png", frame())
    write_png(run / "frames" / f"{'k' * 246}.png", frame())
    output = mtkd("predict", "frames", "--model", TEACHER, "--output", "out", code=1)
    assert "is too long for a file: rename the frame" in output
    assert not (run / "out").exists()


def test_an_empty_argument_is_not_the_current_folder(run):
    output = mtkd("predict", "", "--model", TEACHER, "--output", "out", code=2)
    assert "an argument is empty" in output


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (None, ""),
        (LaunchError("it can't be launched"), "it can't be launched"),
        (torch.OutOfMemoryError("CUDA out of memory."), "too little memory to launch a network"),
    ],
)
def test_frames_of_one_size_are_launched_at_once_from_the_second_on(
    monkeypatch, capsys, fails, reason
):
    launches = []
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))

    class Recorded:
        def __init__(self, module, example, device, launch):
            launches.append((tuple(example.shape[2:]), launch))
            if fails and launch == "graph":
                raise fails

        def __call__(self, frame):
            return frame

    monkeypatch.setattr(frozen_network, "Runner", Recorded)
    segment = FrozenNetwork(None, torch.device("cuda"), (8, 8))
    segment._frozen = SimpleNamespace(dtype=torch.float32)
    for height in (8, 8, 8, 4, 8, 8):
        segment(np.zeros((1, 3, height, 8), np.uint8))
    expected = [
        ((8, 8), "eager"),
        ((8, 8), "graph"),
        ((4, 8), "eager"),
        ((8, 8), "eager"),
        ((8, 8), "graph"),
    ]
    assert launches == (expected[:4] if fails else expected)
    output = capsys.readouterr().out
    assert output.count(f"warning: {reason}") == len(freed) == bool(fails)
    assert ("one by one" in output) == bool(fails)


def test_half_precision_is_left_at_the_first_frame_that_overflows(capsys):
    """Here in bfloat16, with a decoder that overflows where a frame is bright."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    network = create_model("mininetv2", 2).eval()
    half = Frozen(network, device, torch.bfloat16)
    half.native.register_forward_hook(
        lambda module, frames, margins: margins + (torch.inf if frames[0].mean() > 2 else 0)
    )
    size = (48, 64)
    module = Segmenter(Frozen(network, device, torch.float32), size, size).eval()
    exact = Runner(module, torch.zeros(1, 3, *size, dtype=torch.uint8), device)
    segment = FrozenNetwork(network, device, size)
    segment._frozen = half
    dark, bright = (np.full((1, 3, *size), value, np.uint8) for value in (20, 250))
    noisy = frame(size=size).transpose(2, 0, 1)[None]
    segment(dark)
    assert segment._watched is not None
    assert segment.precision == "bfloat16"
    assert capsys.readouterr().out == ""
    for pixels in (bright, noisy, bright, dark):
        assert (segment(pixels) == exact(pixels)).all()
    assert capsys.readouterr().out.count("warning: in half precision the logits of a frame") == 1
    assert segment._watched is None
    assert segment.precision == "float32"
