"""The server of the live page: the page, a socket with frames and masks, and frozen frames."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipeline.deployment.palette import colours_of
from pipeline.live.session import Session
from pipeline.live.view import View, encoded
from stages.live_page.access import Access

STATIC = Path(__file__).parent / "static"
STATUS_SECONDS = 0.5
LATE = "late"  # says a page that was frozen or hidden, and has not drawn a view when it came
# What Starlette raises of a page that is closed, while it is read and while it is written to, or
# that sends what is no text.
CLOSED = (WebSocketDisconnect, RuntimeError, KeyError)


class Page:
    """What browsers ask for.

    Args:
        session: what is shown.
        title: for the page, such as the source's address.
    """

    def __init__(self, session: Session, title: str) -> None:
        self.session = session
        self.title = title
        self._sent: list[deque[View]] = []  # the last two of each page: one may be frozen
        self._new: set[asyncio.Event] = set()

    def app(self, hosts: list[str], token: str | None) -> Starlette:
        """The server; the session starts and ends with it.

        Args:
            hosts: names and addresses under which it may be asked.
            token: what every request must bring, or None.
        """
        routes = [
            Route("/", self._file),
            Route("/settings", self._settings),
            Route("/frames/{number:int}/{name}", self._picture),
            WebSocketRoute("/view", self._view),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        access = Middleware(Access, hosts=hosts, token=token)
        return Starlette(routes=routes, middleware=[access], lifespan=self._running)

    @asynccontextmanager
    async def _running(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def on_view() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._wake)

        self.session.listen(on_view)
        self.session.start()
        yield
        await asyncio.to_thread(self.session.stop)

    def _wake(self) -> None:
        for event in self._new:
            event.set()

    async def _file(self, request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html")

    async def _settings(self, request: Request) -> Response:
        model = self.session.model
        colours = colours_of(model.anatomies)
        anatomies = [
            {"name": name.replace("_", " "), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for name, (_, colour) in colours.items()
        ]
        return JSONResponse(
            {
                "title": self.title,
                "model": model.name,
                "anatomies": anatomies,
            }
        )

    async def _picture(self, request: Request) -> Response:
        """``frame.png`` or ``labels.png`` of a view that a page may show."""
        view = self._kept(request.path_params["number"])
        name = request.path_params["name"]
        if view is None or name not in ("frame.png", "labels.png"):
            return Response(status_code=404)
        pixels = view.frame if name == "frame.png" else view.labels
        png = await asyncio.to_thread(encoded, ".png", pixels)
        return Response(png, media_type="image/png")

    def _kept(self, number: int) -> View | None:
        views = chain(*map(tuple, self._sent))
        return next((view for view in views if view.number == number), None)

    async def _view(self, socket: WebSocket) -> None:
        """Send views, each when the page has drawn the one before, and how things are."""
        await socket.accept()
        both = [asyncio.create_task(work(socket)) for work in (self._show, self._tell)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:  # one has ended, since the page is closed
            task.cancel()

    async def _show(self, socket: WebSocket) -> None:
        new = asyncio.Event()
        self._new.add(new)
        sent: deque[View] = deque(maxlen=2)
        self._sent.append(sent)
        try:
            while True:
                new.clear()
                view = self.session.newest
                if view is None or (sent and view is sent[-1]):
                    await new.wait()
                    continue
                message = await asyncio.to_thread(lambda view: view.message, view)
                sent.append(view)
                await socket.send_bytes(message)
                if await socket.receive_text() != LATE:
                    self.session.was_shown(view)
        except CLOSED:
            return
        finally:
            self._new.discard(new)
            self._sent = [each for each in self._sent if each is not sent]

    async def _tell(self, socket: WebSocket) -> None:
        with suppress(*CLOSED):
            while True:
                await socket.send_text(json.dumps(self.session.status()))
                await asyncio.sleep(STATUS_SECONDS)
