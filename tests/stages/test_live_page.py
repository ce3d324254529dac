"""The live page: who may look in, what it shows, in a real browser, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from time import monotonic, sleep

import cv2
import httpx
import numpy as np
import pytest
from helpers import ROOT, mtkd
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pipeline.deployment.video import VideoWriter
from pipeline.live.session import LiveModel, Session
from pipeline.live.sources import source_of
from stages import live
from stages.live_page.access import cookie_name
from stages.live_page.server import Page

CHECKPOINT = "checkpoints/students/mtkd.safetensors"
CHROMIUM = os.environ.get("MTKD_CHROMIUM") or shutil.which("chromium")
ANATOMIES = ("liver", "colon")


@pytest.fixture
def film(tmp_path):
    """A bright bar that wanders over a dark picture for two seconds."""
    path = tmp_path / "film.mp4"
    writer = VideoWriter(path, (96, 128), Fraction(25))
    for number in range(50):
        frame = np.full((96, 128, 3), 40, np.uint8)
        frame[:, 2 * number : 2 * number + 20] = (220, 90, 30)
        writer.write(frame, Fraction(number, 25))
    writer.close()
    return path


def claims(pixels):
    """Liver is what is bright, colon the upper half of it."""
    bright = cv2.resize(pixels[..., 0], (32, 24)).astype(np.float32) - 128
    colon = bright.copy()
    colon[12:] = -1
    return np.stack([bright, colon])


MODEL = LiveModel(
    "student.safetensors (mininetv2)", lambda: "float32", ANATOMIES, claims, margins=True
)


def channel_of(browser, **headers):
    """The socket with frames; without headers under the server's own name."""
    host = browser.base_url.netloc.decode()
    return browser.websocket_connect(f"ws://{host}/view", headers=headers)


def client(film, hosts=live.LOOPBACK, token=None, base="http://127.0.0.1:8000"):
    page = Page(Session(source_of(str(film), loop=True), MODEL), "film.mp4")
    return TestClient(page.app(list(hosts), token), base_url=base)


# ---- who may look in


def test_the_page_and_its_files_are_served_with_headers_that_keep_others_out(film):
    with client(film) as browser:
        page = browser.get("/")
        assert page.status_code == 200
        assert "mtkd live" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cross-origin-resource-policy"] == "same-origin"
        for name in re.findall(r'"(/static/[^"]+)"', page.text):
            assert browser.get(name).status_code == 200
        assert browser.get("/static/../server.py").status_code == 404
        assert not re.search(r"https?://", page.text)


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "evil.example", "", "127.0.0.1.evil", "[::2]"]
)
def test_another_host_is_refused(film, host):
    """A stranger's page may have pointed its own name at this address."""
    with client(film) as browser:
        for path in ("/", "/settings", "/static/page.js", "/frames/0/frame.png"):
            answer = browser.get(path, headers={"Host": host})
            assert answer.status_code == 403
            assert "is not an address of this server" in answer.text
        with (
            pytest.raises(WebSocketDisconnect),
            channel_of(browser, Host=host),
        ):
            pass


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:9999",
        "null",
        "http://127.0.0.1.evil:8000",
        "http://[",
    ],
)
def test_another_origin_is_refused(film, origin):
    with client(film) as browser:
        assert browser.get("/settings", headers={"Origin": origin}).status_code == 403
        with (
            pytest.raises(WebSocketDisconnect),
            channel_of(browser, Origin=origin),
        ):
            pass


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "localhost:9000", "[::1]:8000"]
)
def test_its_own_page_may_ask_by_any_of_its_names(film, host):
    """Also through a forwarded port."""
    with client(film) as browser:
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert browser.get("/settings", headers=headers).status_code == 200
        with channel_of(browser, **headers):
            pass


def test_without_the_token_nothing_is_shown(film):
    with client(film, ["10.0.0.7"], "secret", "http://10.0.0.7:8000") as browser:
        for path in (
            "/",
            "/settings",
            "/static/page.js",
            "/?token=guess",
            "/settings?token=secret",
        ):
            assert browser.get(path).status_code == 403
        with pytest.raises(WebSocketDisconnect), channel_of(browser):
            pass
        browser.cookies.set(cookie_name({"server": ("10.0.0.7", 8000)}), "guess")
        assert browser.get("/settings").status_code == 403


def test_the_token_opens_the_page_once_and_leaves_the_address(film):
    with client(film, ["10.0.0.7"], "secret", "http://10.0.0.7:8000") as browser:
        answer = browser.get("/?token=secret", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "mtkd_token_8000=" in cookie  # another server of this host has another one
        assert "frame-ancestors" in answer.headers["content-security-policy"]
        assert browser.get("/").status_code == 200
        browser.cookies.clear()
        odd = f'prefs={{"a":1}}; a b=c; {answer.headers["set-cookie"].split(";")[0]}'
        assert browser.get("/", headers={"Cookie": odd}).status_code == 200
        browser.get("/?token=secret")
        with channel_of(browser):
            pass


def test_only_the_loopback_needs_no_token():
    assert live.hosts_of("127.0.0.1") == ["127.0.0.1", "localhost", "::1"]
    assert socket.gethostname() in live.hosts_of("0.0.0.0")
    assert f"{socket.gethostname()}.local" in live.hosts_of("0.0.0.0")
    assert "10.0.0.7" in live.hosts_of("10.0.0.7")
    assert "0.0.0.0" not in live.hosts_of("127.0.0.1")


# ---- what comes over the socket


def messages(channel, count):
    """The next frames, each acknowledged; and what was told between them."""
    frames, told = [], []
    while len(frames) < count:
        message = channel.receive()
        if "bytes" in message and message["bytes"] is not None:
            data = message["bytes"]
            end = 4 + int.from_bytes(data[:4], "little")
            frames.append(json.loads(data[4:end]))
            channel.send_text("drawn")
        else:
            told.append(json.loads(message["text"]))
    return frames, told


def test_frames_come_as_they_are_drawn_and_the_readout_beside(film):
    with client(film) as browser, channel_of(browser) as channel:
        frames, told = messages(channel, 30)
        while len(told) < 4:
            told += messages(channel, 5)[1]
    numbers = [frame["number"] for frame in frames]
    assert numbers == sorted(set(numbers))
    last = told[-1]
    assert last["state"] == "live"
    assert last["fps"] > 1
    assert 0 <= last["latency_ms"] <= last["latency_p95_ms"]
    assert last["captured"] > 0


def test_a_page_that_was_frozen_says_nothing_of_the_latency(film):
    with client(film) as browser, channel_of(browser) as channel:
        latencies = []
        while len(latencies) < 3:
            message = channel.receive()
            if message.get("bytes") is not None:
                channel.send_text("late")
            else:
                latencies.append(json.loads(message["text"])["latency_ms"])
    assert set(latencies) == {None}


def test_a_page_that_draws_slowly_gets_the_newest_frame(film):
    with client(film) as browser, channel_of(browser) as channel:
        first = messages(channel, 1)[0][0]["number"]
        sleep(1.0)
        second, third = (frame["number"] for frame in messages(channel, 2)[0])
    assert second - first <= 3  # it was on its way
    assert third - first > 15


def test_a_frozen_frame_is_kept_with_its_label_map(film):
    with client(film) as browser, channel_of(browser) as channel:
        assert browser.get("/frames/999999/frame.png").status_code == 404
        number = messages(channel, 3)[0][-1]["number"]
        with channel_of(browser) as other:  # another page goes on
            messages(other, 20)
            pictures = {
                name: cv2.imdecode(
                    np.frombuffer(browser.get(f"/frames/{number}/{name}.png").content, np.uint8),
                    cv2.IMREAD_UNCHANGED,
                )
                for name in ("frame", "labels")
            }
        assert pictures["frame"].shape == (96, 128, 3)
        assert pictures["labels"].shape == (96, 128)
        assert set(np.unique(pictures["labels"])) <= {0, 1, 2}
        bright = pictures["frame"][..., 2] > 150
        assert (pictures["labels"] > 0)[bright].mean() > 0.8
        assert browser.get(f"/frames/{number}/other.png").status_code == 404
        assert browser.post(f"/frames/{number}/frame.png").status_code == 405


# ---- from the command line


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mp4"], "nothing.mp4 is no capture device, stream or file"),
        (["params.yaml"], "params.yaml cannot be opened as a video"),
        (["film.mp4", "--model", "no.safetensors"], "no.safetensors"),
        (["film.mp4", "--record", "film.avi"], "expected an .mp4 file"),
        (["film.mp4", "--record", "film.mp4"], "film.mp4 exists: choose another name"),
        (["film.mp4", "--host", "203.0.113.9"], "--host 203.0.113.9 --port 8000"),
        (["film.mp4", "--allow-host", "http://proxy"], "--allow-host http://proxy: expected a"),
        (["film.mp4", "--allow-host", "proxy:8443"], "--allow-host proxy:8443: expected a name"),
        (["film.mp4", "--capture-rate", "30"], "film.mp4 is no capture device"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(run, film, arguments, message):
    shutil.copy(film, "film.mp4")
    output = mtkd("live", *arguments, code=1)
    assert message in " ".join(output.split())


def test_a_port_that_is_taken(run, film):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        output = mtkd("live", str(film), "--port", port, "--record", "new.mp4", code=1)
    assert "choose another port" in " ".join(output.split())
    assert not Path("new.mp4").exists()


def test_smoothing_needs_margins(run, film):
    mtkd("export", CHECKPOINT, "--size", "96x64", "--output", "masks")
    file = next(Path("masks").glob("*.onnx"))
    output = mtkd("live", str(film), "--model", str(file), "--smooth", "0.5", code=1)
    assert "gives masks and no margins: export it with --as margins" in " ".join(output.split())
    output = mtkd("live", str(film), "--model", str(file), "--one-organ", code=1)
    assert "were decided one by one: export it with --one-organ or" in " ".join(output.split())


@pytest.fixture
def served(run, film):
    """``mtkd live`` in a process of its own; gives the process and the address that it printed."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.cli", "live", *arguments, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        )
        started.append(process)
        for line in process.stdout:
            found = re.search(r"http://\S+", line)
            if found:
                return process, found[0]
        raise AssertionError("it printed no address")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_what_ends_it_completes_the_recording(served, film, number):
    process, address = served(str(film), "--loop", "--record", "out.mp4")
    assert address.startswith("http://127.0.0.1:")
    sleep(3)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert "Recorded in out.mp4: " in output
    assert Path("out.mp4").stat().st_size > 0
    assert Path("out.labels.mkv").stat().st_size > 0
    written = {path.name for path in Path().iterdir()}
    assert not [name for name in written if "partial" in name]


def test_another_address_prints_its_token_once(served, film):
    _, address = served(str(film), "--loop", "--host", "0.0.0.0")
    assert re.search(r"/\?token=[\w-]{20,}$", address)


def test_a_proxy_needs_its_name_and_the_token(served, film):
    _, address = served(str(film), "--loop", "--allow-host", "proxy.example")
    assert re.match(r"http://127\.0\.0\.1:\d+/\?token=", address)
    for host, status in (("proxy.example", 303), ("other.example", 403)):
        answer = httpx.get(address, headers={"Host": host})
        assert answer.status_code == status
    assert httpx.get(address.partition("?")[0]).status_code == 403


# ---- in a browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture
def browser():
    """Chromium without a window, which can reach this machine alone."""
    playwright = pytest.importorskip("playwright.sync_api")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as api:
        chromium = api.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def watched(browser):
    """A page, and what went wrong in it: errors, and requests to anywhere else."""

    def opened(address, width=1280, height=900):
        page = browser.new_page(viewport={"width": width, "height": height})
        wrong = []
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        here = address.split("/?")[0].rstrip("/")
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((here, here.replace("http", "ws"), "data:", "blob:"))
                else wrong.append(asked.url)
            ),
        )
        page.goto(address)
        return page, wrong

    return opened


def overlay(page):
    """How many pixels of the overlay are drawn, and the sum of their places."""
    return page.evaluate(
        """() => {
          const canvas = document.getElementById("overlay");
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let count = 0, places = 0;
          for (let i = 3; i < data.length; i += 4) if (data[i]) { count += 1; places += i; }
          return [count, places];
        }"""
    )


def settled(page, condition, seconds=15):
    end = monotonic() + seconds
    while not condition(overlay(page)):
        assert monotonic() < end, "the overlay never came to that"
        sleep(0.1)


def settled_text(page, place, text, seconds=30):
    """Wait for a text; the page's policy forbids playwright's own way, which evaluates one."""
    end = monotonic() + seconds
    while text not in page.locator(place).text_content():
        assert monotonic() < end, f"{place} never said {text}"
        sleep(0.1)


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_moving_overlays_that_can_be_switched(film, watched, serving, width):
    page, wrong = watched(serving(film), width)
    settled(page, lambda drawn: drawn[0] > 100)
    before = overlay(page)
    settled(page, lambda drawn: drawn[0] > 100 and drawn != before)
    page.get_by_role("checkbox", name="liver").uncheck()
    page.get_by_role("checkbox", name="colon").uncheck()
    settled(page, lambda drawn: drawn[0] == 0)
    page.get_by_role("button", name="Show all").click()
    settled(page, lambda drawn: drawn[0] > 100)
    filled = overlay(page)[0]
    page.get_by_label("outlines").check()
    settled(page, lambda drawn: 0 < drawn[0] < filled)
    page.get_by_label("Colour of liver").fill("#123456")
    settled_text(page, "#fps", ".")
    assert page.locator("#state").text_content().startswith("Live from")
    fits = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert fits, "the page is wider than its window"
    assert wrong == []


@needs_browser
def test_a_page_counts_what_it_skips_but_not_while_it_is_frozen(film, watched, serving):
    page, _ = watched(serving(film))
    settled(page, lambda drawn: drawn[0] > 100)
    settled_text(page, "#precision", "float32")
    page.keyboard.press("f")
    page.get_by_role("link", name="label map").wait_for()
    before = int(page.locator("#skipped").text_content())
    sleep(1)
    page.keyboard.press("f")
    sleep(0.5)
    after = int(page.locator("#skipped").text_content())
    assert after - before < 20  # of 25 in that second
    page.evaluate("{ const end = performance.now() + 1000; while (performance.now() < end) {} }")
    end = monotonic() + 15
    while int(page.locator("#skipped").text_content()) < after + 15:
        assert monotonic() < end, "it never counted what it skipped"
        sleep(0.1)


@needs_browser
def test_a_frozen_picture_stands_still_and_can_be_saved(film, watched, serving):
    page, wrong = watched(serving(film))
    settled(page, lambda drawn: drawn[0] > 100)
    page.keyboard.press("f")
    page.get_by_role("link", name="label map").wait_for()
    still = overlay(page)
    sleep(0.5)
    assert overlay(page) == still
    saved = {}
    for name in ("frame", "overlay", "label map"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        saved[name] = cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)
    assert saved["frame"].shape == (96, 128, 3)
    assert saved["overlay"].shape[:2] == (96, 128)
    assert (saved["label map"] > 0).any()
    assert np.abs(saved["overlay"][..., :3].astype(int) - saved["frame"]).max() > 40
    page.get_by_role("button", name="Freeze").click()
    settled(page, lambda drawn: drawn != still)
    assert wrong == []


@needs_browser
def test_everything_has_a_name_and_can_be_reached_by_keyboard(film, watched, serving):
    page, _ = watched(serving(film))
    page.get_by_role("checkbox", name="liver").wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, button, a")]
          .filter((e) => e.offsetParent !== null)
          .filter((e) => !e.labels?.length && !e.getAttribute("aria-label"))
          .filter((e) => !e.textContent.trim())
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.type"))
    assert {"freeze", "all", "none", "checkbox", "color", "radio", "opacity"} <= reached


@needs_browser
def test_the_page_says_that_a_source_has_ended_or_mtkd_is_gone(film, watched, served):
    process, address = served(str(film))
    page, _ = watched(address)
    settled_text(page, "#state", "has ended")
    process.kill()
    settled_text(page, "#state", "is lost")


SENDER = """
import sys, av, time
out = av.open(sys.argv[1], "w", format="mpegts")
stream = out.add_stream("mpeg2video", rate=25)
stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
stream.codec_context.gop_size = 5
while True:
    with av.open(sys.argv[2]) as film:
        for frame in film.decode(video=0):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"))))
            time.sleep(0.04)
"""


@needs_browser
def test_the_page_goes_on_when_a_killed_stream_is_back(film, watched, served):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SENDER, address, str(film)]
    sender = subprocess.Popen(command)
    try:
        page, _ = watched(served(address)[1])
        settled_text(page, "#state", "Live from", 60)
        settled(page, lambda drawn: page.locator("#freeze").is_enabled(), 30)
        sender.kill()
        sender.wait()
        settled_text(page, "#state", "is lost", 60)
        assert page.locator("#old").is_visible()
        captured = page.locator("#dropped").text_content()
        sender = subprocess.Popen(command)
        settled_text(page, "#state", "Live from", 60)
        assert page.locator("#old").is_hidden()
        settled(page, lambda drawn: page.locator("#dropped").text_content() != captured)
    finally:
        sender.kill()
        sender.wait()


@needs_browser
def test_a_page_without_news_shows_that_its_picture_is_old(film, watched, served):
    """mtkd stands still, as a network between would make it seem; the socket stays open."""
    process, address = served(str(film), "--loop")
    page, _ = watched(address)
    settled(page, lambda drawn: page.locator("#freeze").is_enabled())
    assert page.locator("#old").is_hidden()
    process.send_signal(signal.SIGSTOP)
    settled_text(page, "#state", "No news from mtkd")
    assert page.locator("#old").is_visible()
    assert "Not live" in page.locator("#old").text_content()
    process.send_signal(signal.SIGCONT)
    settled_text(page, "#state", "Live from film.mp4")
    assert page.locator("#old").is_hidden()


@needs_browser
def test_a_page_asks_again_what_the_anatomies_are(film, watched, serving):
    """Another mtkd may answer after the connection was lost."""
    page, _ = watched(serving(film))
    settled(page, lambda drawn: drawn[0] > 100)
    page.evaluate("window.marked = true; socket.close()")
    settled_text(page, "#state", "is lost")
    settled_text(page, "#state", "Live from")
    assert page.evaluate("window.marked") is True
    with page.expect_navigation():
        page.evaluate("settings = 'of another server'; socket.close()")
    settled(page, lambda drawn: drawn[0] > 100)
    assert page.evaluate("window.marked") is None
    assert page.get_by_role("checkbox").count() == len(ANATOMIES)


@needs_browser
def test_what_is_under_the_pointer_is_named(film, watched, serving):
    page, _ = watched(serving(film))
    settled(page, lambda drawn: drawn[0] > 100)
    page.keyboard.press("f")
    page.get_by_role("link", name="label map").wait_for()
    place = page.evaluate(
        """() => {
          const { width, bits } = view;
          const at = Array.from({ length: bits.length / 4 }, (_, i) => bits[4 * i]).indexOf(1);
          const box = overlay.getBoundingClientRect();
          const scale = box.width / width;
          return [box.left + (at % width + 0.5) * scale,
                  box.top + (Math.floor(at / width) + 0.5) * scale];
        }"""
    )
    page.mouse.move(*place)
    settled_text(page, "#under", "liver")


@pytest.fixture
def serving():
    """The page with a small model, in a thread: gives its address."""
    import threading

    import uvicorn

    servers = []

    def start(film):
        page = Page(Session(source_of(str(film), loop=True), MODEL), film.name)
        port = free_port()
        app = page.app(list(live.LOOPBACK), None)
        config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        end = monotonic() + 20
        while not server.started:
            assert monotonic() < end
            sleep(0.05)
        return f"http://127.0.0.1:{port}/"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)
