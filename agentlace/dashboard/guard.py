"""What every request must fulfil before anything looks at it, and what every reply says.

A page of another site must not reach the dashboard through its visitor's browser: neither under a
name of its own that leads here (DNS rebinding: the Host is checked), nor by a form or script that
posts here (the Origin is checked, beside the cookie's SameSite). Replies forbid to load anything
from elsewhere, and to be shown in a frame.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; manifest-src 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
SAFE = ("GET", "HEAD")
BODY_MAX = 64 << 10


class Guard:
    """Checks requests and adds headers; a layer around the application.

    Args:
        app: the application.
        hosts: names under which it may be reached, beside localhost, this machine's own name and
            addresses in numbers (a name of somebody else's cannot be one).
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        own = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self._hosts = own | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have the application answer it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = self._app if refusal is None else refusal
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            todo = "pass --allowed-host NAME if it is a name of this machine"
            return PlainTextResponse(f"host {host[:100]!r} is not served here: {todo}\n", 421)
        if method in SAFE:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        is_other = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if is_other or (site is not None and site not in ("same-origin", "none")):
            return PlainTextResponse("a page of another site may not do this\n", 403)
        try:
            is_long = int(headers.get("content-length", "-1")) > BODY_MAX
        except ValueError:
            is_long = True
        if is_long or "transfer-encoding" in headers:
            return PlainTextResponse("too long\n", 413)
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
