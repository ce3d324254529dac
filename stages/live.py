"""``mtkd live``: a camera, a stream or a film in the browser, with all anatomies on top."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EADDRINUSE
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from signal import SIGHUP, SIGTERM, signal
from typing import Any

import numpy as np
import psutil
import uvicorn
from numpy.typing import NDArray

from pipeline.checkpoint import load_checkpoint
from pipeline.deployment.export import load_graph, runtime_of
from pipeline.deployment.segmenter import as_masks, masks_at, resized
from pipeline.deployment.video import video_frames
from pipeline.errors import MtkdError
from pipeline.live.recording import Recorder
from pipeline.live.session import LiveModel, Session
from pipeline.live.sources import AS_IT_IS, Mode, source_of
from pipeline.live.view import MOST_ANATOMIES
from pipeline.machine import Machine
from stages.live_page.server import Page
from stages.shared.console import say
from stages.shared.frozen_network import FrozenNetwork

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Seconds that pages which are open may keep the server from ending.
GRACE = 2


@dataclass(frozen=True)
class Options:
    """How a source is shown.

    Attributes:
        loop: whether a file begins again when it ends.
        one_organ: whether a pixel belongs to one anatomy at most.
        smooth: share of the frames before in the margins, 0 up to less than 1.
        record: where overlays and label maps are kept, or None.
        host: address that the server listens on.
        port: likewise; 0 for one that is free.
        allow: more names under which browsers may ask, as of a proxy.
        mode: what a capture device is asked for.
    """

    loop: bool = False
    one_organ: bool = False
    smooth: float = 0.0
    record: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allow: Sequence[str] = ()
    mode: Mode = AS_IT_IS


def run(name: str, model: Path, options: Options, machine: Machine) -> None:
    """Segment a source and serve the page, until Ctrl-C.

    Args:
        name: a capture device, the address of a stream, or a file.
        model: a checkpoint, or a file that ``mtkd export`` wrote.
        options: how it is shown.
        machine: where a checkpoint computes.

    Raises:
        MtkdError: there is no such source or model, the model cannot do what is asked, a name of
            the page is none, the recording exists, or the port is taken.
    """
    _require_names(options.allow)
    source = source_of(name, loop=options.loop, mode=options.mode)
    if source.kind == "file":
        video_frames(Path(name))  # refuses what is no video
    loaded = load_model(model, machine, options)
    with _listening(options) as listener:
        recorder = Recorder(options.record, loaded.anatomies) if options.record else None
        session = Session(
            source,
            loaded,
            one_organ=options.one_organ,
            smooth=options.smooth,
            recorder=recorder,
        )
        address, port = listener.getsockname()[:2]
        is_alone = address in LOOPBACK and not options.allow
        token = None if is_alone else secrets.token_urlsafe(16)
        hosts = [*hosts_of(options.host), *hosts_of(address), *options.allow]
        app = Page(session, source.shown).app(hosts, token)
        say(f"{source.shown} on {model}: open {_address(address, port, token)}")
        say("Ctrl-C ends it. This is no medical device: for research alone")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE,
            ws_per_message_deflate=False,  # pictures are compressed already
        )
        _serve(uvicorn.Server(config), listener, recorder)
    if recorder is not None:
        say(recorder.status())
        if recorder.problem:
            raise MtkdError(f"the recording is incomplete: {recorder.problem}")


def _serve(server: uvicorn.Server, listener: socket.socket, recorder: Recorder | None) -> None:
    """Until Ctrl-C, or the end of the terminal or service; then the recording is complete."""
    for number in (SIGHUP, SIGTERM):
        signal(number, lambda *_: setattr(server, "should_exit", True))
    try:
        with suppress(KeyboardInterrupt):  # which the server raises again when all has ended
            server.run(sockets=[listener])
    finally:  # an impatient second Ctrl-C leaves the session as it is
        if recorder is not None:
            recorder.close()


def load_model(path: Path, machine: Machine, options: Options) -> LiveModel:
    """A checkpoint on the machine's device, or an exported file on the processor.

    Raises:
        MtkdError: as of :func:`run`.
    """
    loaded = _checkpoint(path, machine) if path.suffix == ".safetensors" else _exported(path)
    if options.smooth and not loaded.margins:
        raise MtkdError(f"--smooth: {path} gives masks and no margins: export it with --as margins")
    if options.one_organ and not loaded.margins and not loaded.one_organ:
        raise MtkdError(
            f"--one-organ: the masks of {path} were decided one by one: export it with --one-organ "
            "or --as margins"
        )
    if len(loaded.anatomies) > MOST_ANATOMIES:
        raise MtkdError(
            f"{path} knows {len(loaded.anatomies)} anatomies, and the page at most {MOST_ANATOMIES}"
        )
    return loaded


def _checkpoint(path: Path, machine: Machine) -> LiveModel:
    network, card = load_checkpoint(path)
    device = machine.torch_device
    size = card.image_size
    frozen = FrozenNetwork(network.to(device), device, size, gives="margins", layout="nhwc")

    def claims(frame: NDArray[np.uint8]) -> NDArray[Any]:
        # The output is valid until the next call.
        return frozen(resized(frame, size)[None])[0, 1:].copy()

    name = f"{path.name} ({card.architecture})"
    return LiveModel(name, lambda: frozen.precision, tuple(card.anatomies), claims, margins=True)


def _exported(path: Path) -> LiveModel:
    compute, card = load_graph(path)
    margins = card.gives == "margins"

    def claims(frame: NDArray[np.uint8]) -> NDArray[Any]:
        output = compute(frame)
        if margins:
            return output[0, 1:].astype(np.float32)
        anatomies = len(card.anatomies)
        masks = as_masks(output, card.gives, anatomies, card.frame_size, one_organ=False)
        return masks_at(masks, frame.shape[:2])

    runtime = runtime_of(path)
    one_organ = card.one_organ or card.gives == "labels"
    return LiveModel(
        path.name,
        lambda: runtime,
        tuple(card.anatomies),
        claims,
        margins=margins,
        one_organ=one_organ,
    )


@contextmanager
def _listening(options: Options) -> Iterator[socket.socket]:
    """A socket that listens, before a model computes or a recording begins.

    Raises:
        MtkdError: the address is not this machine's, or its port is taken.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            advice = "name an address of this machine"
            if error.errno in (EADDRINUSE, EACCES):
                advice = "choose another port, or --port 0 for one that is free"
            raise MtkdError(
                f"--host {options.host} --port {options.port}: {error.strerror or error}: {advice}"
            ) from error
        listener.listen()
        yield listener


def hosts_of(host: str) -> list[str]:
    """Names under which the server may be asked: its own, never a stranger's.

    Args:
        host: the address that it listens on.
    """
    if host in LOOPBACK:
        return list(LOOPBACK)
    own = socket.gethostname()
    names = {host, own, f"{own}.local", socket.getfqdn(), *LOOPBACK}
    if _is_any(host):
        names |= set(_own_addresses())
    return sorted(names)


def _require_names(allowed: Sequence[str]) -> None:
    for name in allowed:
        if not name or "/" in name or name.count(":") == 1:
            raise MtkdError(f"--allow-host {name}: expected a name alone, as proxy.example")


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _own_addresses() -> list[str]:
    """This machine's addresses; first the one by which most others reach it."""
    internet = (socket.AF_INET, socket.AF_INET6)
    interfaces = chain.from_iterable(psutil.net_if_addrs().values())
    found = [each.address.partition("%")[0] for each in interfaces if each.family in internet]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        found.insert(0, str(probe.getsockname()[0]))
    return sorted(dict.fromkeys(found), key=lambda address: ip_address(address).is_loopback)


def _address(host: str, port: int, token: str | None) -> str:
    name = _own_addresses()[0] if _is_any(host) else host
    shown = f"[{name}]" if ":" in name else name
    query = f"/?token={token}" if token else ""
    return f"http://{shown}:{port}{query}"
