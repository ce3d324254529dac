"""Live frames: the newest first, sources that come and go, steady masks, recordings."""

import json
import socket
import subprocess
import sys
import threading
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep

import av
import cv2
import numpy as np
import pytest

from pipeline.deployment.video import VideoWriter, aspect_of, read_video
from pipeline.errors import MtkdError
from pipeline.live import recording, sources
from pipeline.live import session as live_session
from pipeline.live.latest import Latest
from pipeline.live.recording import LabelWriter, Recorder, labels_path
from pipeline.live.session import LiveModel, Session
from pipeline.live.smoothing import Smoothing, flicker
from pipeline.live.sources import AS_IT_IS, Capture, Mode, source_of, square
from pipeline.live.statistics import Window
from pipeline.live.view import SHOWN, View

ANATOMIES = ("liver", "colon")


def frame(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


def film(path, frames=15, rate=30, size=(48, 64)):
    writer = VideoWriter(path, size, Fraction(rate))
    for number in range(frames):
        writer.write(frame(16 * number % 256, size), Fraction(number, rate))
    writer.close()
    return path


def model(seconds=0.0, anatomies=ANATOMIES):
    """The first anatomy claims the left half."""

    def claims(pixels):
        sleep(seconds)
        margins = np.full((len(anatomies), 12, 16), -1, np.float32)
        margins[0, :, :8] = 1
        return margins

    return LiveModel("model.onnx", lambda: "float32", anatomies, claims, margins=True)


def until(condition, seconds=20):
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it never came to that"
        sleep(0.01)


# ---- the newest first


def test_what_nobody_took_is_replaced_and_counted():
    place = Latest()
    for item in range(5):
        place.put(item)
    assert place.take() == 4
    assert place.dropped == 4
    assert place.take(timeout=0.01) is None


def test_who_waits_is_woken_by_an_item_and_by_the_end():
    place = Latest()
    threading.Timer(0.05, place.put, ["frame"]).start()
    assert place.take(5) == "frame"
    threading.Timer(0.05, place.close).start()
    assert place.take(5) is None
    assert place.closed


def test_a_slow_network_shows_fewer_frames_and_not_later_ones(tmp_path):
    """30 frames a second, of which the network takes ten: the oldest is never waited for."""
    source = source_of(str(film(tmp_path / "film.mp4", 60)))
    session = Session(source, model(0.1))
    ages, numbers = [], []
    session.listen(lambda: ages.append(monotonic() - session.newest.captured))
    session.listen(lambda: numbers.append(session.newest.number))
    session.start()
    until(lambda: session.status()["state"] == "ended")
    session.stop()
    status = session.status()
    assert status["captured"] == 60
    assert status["dropped"] > 20
    assert sorted(ages)[len(ages) // 2] < 0.25
    assert numbers == sorted(numbers)


def test_a_frame_that_is_nearly_as_old_as_the_next_one_is_near_waits_for_it(tmp_path):
    """With a network of one and three quarters of a frame's time, every frame would be old."""
    session = Session(source_of(str(film(tmp_path / "film.mp4", 60, 10)), loop=True), model(0.175))
    ages = []
    old_segmented = session._segmented

    def segmented(captured):
        ages.append(monotonic() - captured.time)
        return old_segmented(captured)

    session._segmented = segmented
    session.start()
    until(lambda: len(ages) >= 15)
    session.stop()
    assert sorted(ages)[len(ages) // 2] < 0.03  # else 0.05
    assert session.status()["dropped"] > 0


# ---- sources


def test_names_of_sources(tmp_path):
    path = film(tmp_path / "a film.mp4")
    assert source_of(str(path), loop=True) == sources.Source("file", str(path), True)
    assert source_of("rtsp://camera/1").kind == "stream"
    assert source_of("UDP://127.0.0.1:5000").kind == "stream"
    assert source_of("/dev/null").kind == "camera"  # a device, as /dev/video0


def test_a_capture_device_is_asked_for_a_mode(monkeypatch):
    asked = []

    def opened(address, **options):
        asked.append((address, options))
        raise OSError("no such device")

    monkeypatch.setattr(sources.av, "open", opened)
    messages = []
    for mode in (Mode((1080, 1920), 59.94, "mjpeg"), AS_IT_IS):
        capture, _ = captured(source_of("/dev/null", mode=mode), 1, seconds=0.2)
        capture.stop()
        messages.append(capture.status.message)
    with_mode, without = asked
    expected = {"video_size": "1920x1080", "framerate": "59.94", "input_format": "mjpeg"}
    assert with_mode[1]["options"] == expected
    assert with_mode[1]["format"] == without[1]["format"] == "v4l2"
    assert without[1]["options"] == {}
    assert all("no such device" in message for message in messages)


@pytest.mark.parametrize(
    ("name", "loop", "message"),
    [
        ("nothing.mp4", False, "nothing.mp4 is no capture device, stream or file. Capture devices"),
        ("/dev/video99", False, "/dev/video99 is no capture device"),
        ("ftp://host/film", False, "ftp:// is not known; name one of rtsp://"),
        ("rtsp://camera/1", True, "--loop: rtsp://camera/1 is no file"),
        (".", False, ". is no capture device, stream or file"),
    ],
)
def test_a_wrong_name_is_refused_at_once(name, loop, message):
    with pytest.raises(MtkdError, match=message):
        source_of(name, loop=loop)


def test_nobody_is_shown_a_password_or_a_path(tmp_path):
    secret = "rtsp://admin:s3cret@127.0.0.1:9/stream"
    capture = Capture(source_of(secret), Latest())
    opening = capture.status.message
    capture.start()
    until(lambda: capture.status.state == "lost")
    capture.stop()
    for message in (opening, capture.status.message):
        assert "s3cret" not in message
        assert "rtsp://***@127.0.0.1:9/stream" in message
    assert source_of(str(film(tmp_path / "film.mp4"))).shown == "film.mp4"
    assert source_of("http://127.0.0.1/a@b").shown == "http://127.0.0.1/a@b"


def captured(source, count, seconds=20):
    """Times and numbers of the first frames of a source."""
    place = Latest()
    capture = Capture(source, place)
    capture.start()
    items = []
    end = monotonic() + seconds
    while len(items) < count and monotonic() < end:
        item = place.take(0.1)
        if item is not None:
            items.append(item)
    return capture, items


def test_a_film_is_paced_as_a_camera_and_ends(tmp_path):
    start = monotonic()
    capture, items = captured(source_of(str(film(tmp_path / "film.mp4", 15))), 15, 3)
    until(lambda: capture.status.state == "ended")
    assert 0.4 < monotonic() - start < 5
    assert capture.captured == 15
    assert "has ended" in capture.status.message
    assert [item.number for item in items] == sorted(item.number for item in items)


def test_a_film_in_a_loop_goes_on(tmp_path):
    capture, items = captured(source_of(str(film(tmp_path / "film.mp4", 5)), loop=True), 12)
    capture.stop()
    assert len(items) == 12
    assert capture.status.state == "live"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_film_on_a_web_server_is_paced_and_ends(tmp_path):
    film(tmp_path / "film.mp4", 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = source_of(f"http://127.0.0.1:{server.server_port}/film.mp4")
        capture, items = captured(source, 20, 3)
        until(lambda: capture.status.state != "live")
        server.shutdown()
    assert capture.status.state == "ended"
    assert capture.captured == 20
    assert items[-1].time - items[0].time > 0.5  # 19 frames at 30 per second


def test_a_lying_frame_of_wide_pixels_is_shown_as_a_player_does(tmp_path):
    path = tmp_path / "lying.mp4"
    writer = VideoWriter(path, (48, 64), Fraction(30), Fraction(2))
    writer.write(frame(90), None)
    writer.close()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        kept = next(container.decode(stream))
        assert aspect_of(stream, kept) == 2

        class Turned:
            rotation = 90

        assert aspect_of(stream, Turned()) == Fraction(1, 2)
    assert square(np.rot90(frame(90)), 0.5).shape == (64, 24, 3)


def test_what_is_no_film_ends_with_a_reason(tmp_path):
    """Whatever loop says: a file that gives no frame is not tried for ever."""
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    capture = Capture(source_of(str(path), loop=True), Latest())
    capture.start()
    until(lambda: capture.status.state == "ended")
    assert "Invalid data" in capture.status.message


SENDER = """
import sys, av, numpy as np, time
port = sys.argv[1]
out = av.open(f"udp://127.0.0.1:{port}", "w", format="mpegts")
stream = out.add_stream("mpeg2video", rate=25)
stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
stream.codec_context.gop_size = 5
while True:
    picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
    out.mux(stream.encode(picture))
    time.sleep(0.04)
"""


def test_a_killed_stream_is_lost_and_found_again(monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 2.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    session = Session(source_of(f"udp://127.0.0.1:{port}"), model())
    session.start()
    command = [sys.executable, "-c", SENDER, str(port)]
    sender = subprocess.Popen(command)
    try:
        until(lambda: session.newest is not None and session.status()["state"] == "live", 60)
        sender.kill()
        sender.wait()
        until(lambda: session.status()["state"] == "lost")
        assert "Trying again in" in session.status()["message"]
        before = session.newest.number
        sender = subprocess.Popen(command)
        until(lambda: session.newest.number > before, 60)
        until(lambda: session.status()["state"] == "live")
    finally:
        sender.kill()
        sender.wait()
        session.stop()


def test_a_frame_that_cannot_be_segmented_is_said_and_the_next_is_tried(tmp_path):
    seen = []

    def claims(pixels):
        seen.append(pixels)
        if len(seen) == 1:
            raise RuntimeError("no kernel\nfor this size")
        return np.ones((2, 12, 16), np.float32)

    broken = LiveModel("m", lambda: "float32", ANATOMIES, claims, margins=True)
    session = Session(source_of(str(film(tmp_path / "film.mp4")), loop=True), broken)
    problems = []
    real = session._segmented
    session._segmented = lambda item: (problems.append(session._problem), real(item))[1]
    session.start()
    until(lambda: session.newest is not None)
    session.stop()
    assert problems[:2] == [None, "Frame 0 could not be segmented: no kernel for this size"]
    assert session.status()["state"] != "failed"


def test_a_network_that_does_not_answer_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(live_session, "STALLED", 0.3)
    goes_on = threading.Event()
    seen = []

    def claims(pixels):
        seen.append(pixels)
        if len(seen) > 1:
            goes_on.wait(30)
        return np.ones((2, 12, 16), np.float32)

    hanging = LiveModel("m", lambda: "float32", ANATOMIES, claims, margins=True)
    session = Session(source_of(str(film(tmp_path / "film.mp4")), loop=True), hanging)
    session.start()
    until(lambda: "The network has not answered" in session.status()["message"])
    status = session.status()
    assert status["state"] == "stalled"
    assert status["fps"] is status["network_ms"] is None
    goes_on.set()
    until(lambda: session.status()["state"] == "live")
    session.stop()


# ---- views


@pytest.mark.parametrize("one_organ", [False, True])
@pytest.mark.parametrize("anatomies", [2, 11, 24])
def test_a_message_has_a_bit_for_each_anatomy(anatomies, one_organ):
    rng = np.random.default_rng(anatomies)
    margins = rng.normal(size=(anatomies, 12, 16)).astype(np.float32)
    view = View(7, 3, 0.0, rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), margins, one_organ)
    message = view.message
    end = 4 + int.from_bytes(message[:4], "little")
    header = json.loads(message[4:end])
    assert (header["number"], header["index"]) == (7, 3)
    assert (header["width"], header["height"]) == (64, 48)
    jpeg, png = message[end : end + header["jpeg"]], message[end + header["jpeg"] :]
    picture, bits = (
        cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_UNCHANGED) for part in (jpeg, png)
    )
    assert picture.shape == (48, 64, 3)
    planes = bits[..., None] if bits.ndim == 2 else bits[..., ::-1]
    for number, mask in enumerate(view.masks):
        assert ((planes[..., number // 8] >> number % 8 & 1) == mask).all()
    assert (view.masks.sum(0).max() > 1) == (not one_organ)
    labels = view.labels
    for i, j in np.ndindex(4, 4):
        y, x = 12 * i, 16 * j
        inside = view.masks[:, y, x]
        assert (labels[y, x] > 0) == inside.any()
        assert labels[y, x] == 0 or inside[labels[y, x] - 1]


def test_masks_without_margins():
    masks = np.zeros((2, 48, 64), bool)
    masks[0, :, :40] = True
    masks[1, :, 20:] = True
    view = View(0, 0, 0.0, frame(9), masks, one_organ=False)
    assert (view.masks == masks).all()
    assert (view.labels[:, 30] == 1).all()
    assert (view.labels[:, 50] == 2).all()
    assert (view.within(32).bits()[:, 15] == 3).all()
    exclusive = View(0, 0, 0.0, frame(9), masks, one_organ=True)
    assert exclusive.masks.sum(0).max() == 1


def test_a_large_frame_is_made_smaller_for_the_page_alone():
    view = View(0, 0, 0.0, frame(9, (1440, 2560)), np.ones((1, 9, 16), np.float32), one_organ=False)
    message = view.message
    end = 4 + int.from_bytes(message[:4], "little")
    header = json.loads(message[4:end])
    assert (header["width"], header["height"]) == (SHOWN, SHOWN * 9 // 16)
    assert view.labels.shape == (1440, 2560)


# ---- steadiness


def test_smoothing_is_an_exponential_mean_until_a_cut():
    smoothing = Smoothing(0.75)
    margins = [np.full((1, 2, 2), value, np.float32) for value in (0, 8, 8, 4)]
    first = frame(100)
    assert smoothing(first, margins[0])[0, 0, 0] == 0
    assert smoothing(first, margins[1])[0, 0, 0] == 2
    assert smoothing(first, margins[2])[0, 0, 0] == 3.5
    assert smoothing(frame(200), margins[3])[0, 0, 0] == 4  # another scene
    assert smoothing(frame(205), margins[1])[0, 0, 0] == 5


def test_what_is_not_finite_leaves_the_mean_with_the_next_frame():
    smoothing = Smoothing(0.9)
    margins = [np.full((1, 2, 2), value, np.float32) for value in (1, np.nan, 3)]
    for each in margins:
        smoothed = smoothing(frame(100), each)
    assert smoothed == pytest.approx(3)


def test_a_source_that_is_opened_again_is_another_scene(tmp_path):
    """A film in a loop, of frames that are alike and margins that are not."""
    seen = []

    def claims(pixels):
        seen.append(pixels)
        return np.full((2, 12, 16), len(seen), np.float32)

    live_model = LiveModel("m", lambda: "float32", ANATOMIES, claims, margins=True)
    still = tmp_path / "film.mp4"
    writer = VideoWriter(still, (48, 64), Fraction(30))
    for number in range(3):
        writer.write(frame(90), Fraction(number, 30))
    writer.close()
    session = Session(source_of(str(still), loop=True), live_model, smooth=0.95)
    unsmoothed = []
    session.listen(lambda: unsmoothed.append(session.newest.claims.max() == len(seen)))
    session.start()
    until(lambda: sum(unsmoothed) >= 3)
    session.stop()
    assert not all(unsmoothed)


def test_a_change_of_the_grid_begins_anew():
    smoothing = Smoothing(0.5)
    smoothing(frame(1), np.zeros((1, 2, 2), np.float32))
    assert smoothing(frame(1), np.ones((1, 4, 4), np.float32)).shape == (1, 4, 4)


def test_flicker():
    labels = np.zeros((4, 4), np.uint8)
    others = labels.copy()
    others[0] = 3
    assert flicker(labels, others) == 0.25


def test_rates_and_percentiles_of_the_last_seconds():
    window = Window(10)
    assert window.per_second(0.0) is None
    assert window.percentiles(50) == [None]
    for number in range(40):
        window.add(number, now=0.5 * number)
    assert window.per_second(now=20) == pytest.approx(2, rel=0.1)
    assert window.percentiles(0, 100, now=20) == [20, 39]


# ---- recordings


def views(count, size=(48, 64)):
    """Views of a moving bar, 40 ms apart."""
    for number in range(count):
        margins = np.full((2, 12, 16), -1, np.float32)
        margins[number % 2, :, number % 16] = 5
        yield View(number, number, 100 + 0.04 * number, frame(90, size), margins, one_organ=False)


def read_labels(path):
    with av.open(str(path)) as container:
        assert container.metadata["ANATOMIES"] == "liver,colon"
        return [
            (float(each.time), each.to_ndarray(format="gray")) for each in container.decode(video=0)
        ]


def test_a_recording_has_overlays_and_label_maps_with_their_times(tmp_path):
    recorder = Recorder(tmp_path / "new" / "out.mp4", ANATOMIES)
    expected = list(views(20))
    for view in expected:
        recorder.put(view)
        until(lambda: recorder._queue.empty())
    recorder.close()
    assert recorder.status() == "Recorded in out.mp4: 20 frames"
    overlays = list(read_video(tmp_path / "new" / "out.mp4"))
    assert len(overlays) == 20
    assert float(overlays[19].time) == pytest.approx(0.76, abs=0.001)
    labels = read_labels(labels_path(tmp_path / "new" / "out.mp4"))
    for (time, found), view in zip(labels, expected, strict=True):
        assert time == pytest.approx(view.captured - 100, abs=0.001)
        assert (found == view.labels).all()


def test_a_slow_disk_leaves_views_out_and_holds_nothing_up(tmp_path, monkeypatch):
    real = recording.draw
    monkeypatch.setattr(recording, "draw", lambda *args: (sleep(0.1), real(*args))[1])
    recorder = Recorder(tmp_path / "out.mp4", ANATOMIES)
    begun = monotonic()
    for view in views(30):
        recorder.put(view)
    assert monotonic() - begun < 0.5
    recorder.close()
    assert recorder.written + recorder.left_out == 30
    assert f"{recorder.left_out} left out" in recorder.status()


def test_a_full_disk_ends_the_recording_and_keeps_what_it_has(tmp_path, monkeypatch):
    real = LabelWriter.write

    def write(self, labels, time):
        if time > 0.21:
            raise MtkdError(f"{self.path} cannot be written (No space left on device): make room")
        real(self, labels, time)

    monkeypatch.setattr(LabelWriter, "write", write)
    recorder = Recorder(tmp_path / "out.mp4", ANATOMIES)
    for view in views(12):
        recorder.put(view)
        sleep(0.02)
    until(lambda: recorder.problem is not None)
    recorder.put(next(views(1)))
    recorder.close()
    assert recorder.status().startswith("Recording has stopped: ")
    assert "No space left on device" in recorder.status()
    assert len(read_labels(labels_path(tmp_path / "out.mp4"))) == 6
    assert len(list(read_video(tmp_path / "out.mp4"))) >= 6


def test_large_views_are_recorded_smaller(tmp_path):
    recorder = Recorder(tmp_path / "out.mp4", ANATOMIES)
    for view in views(2, (1440, 2560)):
        recorder.put(view)
    recorder.close()
    assert recorder.problem is None
    for path in (tmp_path / "out.mp4", labels_path(tmp_path / "out.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width) == (1080, 1920)


def test_label_maps_of_another_size_are_resized(tmp_path):
    recorder = Recorder(tmp_path / "out.mp4", ANATOMIES)
    for view in [*views(2), *views(2, (24, 32))]:
        recorder.put(view)
        until(lambda: recorder._queue.empty())
    recorder.close()
    assert recorder.problem is None
    assert {labels.shape for _, labels in read_labels(labels_path(tmp_path / "out.mp4"))} == {
        (48, 64)
    }


def test_no_recording_is_overwritten(tmp_path):
    Path(tmp_path / "out.labels.mkv").touch()
    with pytest.raises(MtkdError, match=r"out.labels.mkv exists: choose another name"):
        Recorder(tmp_path / "out.mp4", ANATOMIES)
    with pytest.raises(MtkdError, match=r"expected an .mp4 file"):
        Recorder(tmp_path / "out.avi", ANATOMIES)
