"""Latency of the live page over minutes, and whether memory stays flat.

    python docs/scripts/live_latency.py FILM.mp4 MINUTES

A film that is paced as a camera, a network that takes a fifteenth of a second (it waits; the
student counts in it), and Chromium without a window, which draws every frame that it is
sent. A row for each minute: frames per second, latency from the arrival of a frame until it is
drawn, median and 95th percentile, and the memory of this process.
"""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Annotated, Any

import numpy as np
import shared
import typer
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright

from pipeline.live.session import LiveModel, Session
from pipeline.live.sources import source_of
from pipeline.machine import Machine
from stages.live import LOOPBACK, Options, load_model
from stages.live_page.server import Page
from stages.shared.project import load_project

NETWORK = 1 / 15  # seconds


def main(film: Path, minutes: Annotated[int, typer.Argument(min=1)]) -> None:
    """Show a film for so many MINUTES, and measure."""
    path = load_project(Path()).student_checkpoint("mtkd")
    model = _as_slow(load_model(path, Machine("cpu"), Options()))
    session = Session(source_of(str(film), loop=True), model, one_organ=True)
    with socket.socket() as listener, sync_playwright() as browsers:
        listener.bind(("127.0.0.1", 0))
        app = Page(session, film.name).app(list(LOOPBACK), None)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        serving.start()
        chromium = browsers.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        print("| minute | frames/s | latency, median | 95th percentile | MiB |")
        print("|---:|---:|---:|---:|---:|")
        for minute in range(1, minutes + 1):
            sleep(60)
            _print(minute, session.status())
        chromium.close()
        server.should_exit = True
        serving.join(20)


def _as_slow(model: LiveModel) -> LiveModel:
    def claims(frame: NDArray[np.uint8]) -> NDArray[Any]:
        begun = monotonic()
        found = model.claims(frame)
        sleep(max(0.0, begun + NETWORK - monotonic()))
        return found

    return replace(model, claims=claims)


def _print(minute: int, status: dict[str, Any]) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    latency = f"{status['latency_ms']:.0f} ms | {status['latency_p95_ms']:.0f} ms"
    print(f"| {minute} | {status['fps']} | {latency} | {mib:.0f} |", flush=True)


if __name__ == "__main__":
    shared.run(main)
