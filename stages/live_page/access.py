"""Who may look in: requests of this page alone, and elsewhere only with the token."""

import secrets
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing from elsewhere is loaded, no other page may frame this one or embed its pictures.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Access:
    """Refuses requests under another name or from another page, and those without the token.

    A page elsewhere can make a browser ask this server under a name that it points here (DNS
    rebinding), or from its own address: the Host and Origin headers tell.

    Args:
        app: the server behind.
        hosts: names and addresses under which it may be asked.
        token: what every request must bring, once in its address and then as a cookie; None for
            none.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str | None) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = _with_headers(send)
        problem = self._problem(headers)
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if problem is None and self.token is not None:
            if scope["type"] == "http" and scope["path"] == "/" and self._is_token(asked):
                await _welcome(asked, cookie_name(scope))(scope, receive, send)
                return
            cookies = cookie_parser(headers.get("cookie", ""))
            if not self._is_token(cookies.get(cookie_name(scope), "")):
                problem = "open the address that mtkd live printed, with its token"
        if problem is not None:
            await _refuse(problem, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return f"{host or 'no Host'} is not an address of this server"
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            return f"requests from {origin} are refused"
        return None

    def _is_token(self, text: str) -> bool:
        return self.token is not None and secrets.compare_digest(text.encode(), self.token.encode())


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def cookie_name(scope: Scope) -> str:
    """Of this server alone: a browser sends cookies to all ports of a host."""
    return f"mtkd_token_{(scope.get('server') or ('', 0))[1]}"


def _welcome(token: str, name: str) -> RedirectResponse:
    """To the page itself, so that the token does not stay in the address.

    Lax, or the link would not work where it is clicked in a mail; other pages are refused by their
    Origin.
    """
    response = RedirectResponse("/", 303)
    response.set_cookie(name, token, httponly=True, samesite="lax")
    return response


async def _refuse(problem: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # answered as 403
        return
    await PlainTextResponse(f"Refused: {problem}\n", 403)(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending
