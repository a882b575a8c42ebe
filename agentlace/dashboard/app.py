"""The dashboard as a web application: its routes and what they answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from agentlace.dashboard.auth import ADMIN, COOKIE, SESSION_S, Attempts, Passwords, Sessions
from agentlace.dashboard.cameras import Cameras
from agentlace.dashboard.desk import Desk
from agentlace.dashboard.feed import Feed, as_json
from agentlace.dashboard.guard import Guard
from agentlace.errors import AgentlaceError
from agentlace.operating.prometheus import CONTENT_TYPE, exposition

STATIC = Path(__file__).with_name("static")
STREAMS_MAX = 50
"""So many pages may be open at the same time."""
STREAM_S = 3600.0
"""A page connects anew after this, so that a session that has ended is noticed."""
PING_S = 15.0

Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Dashboard:
    """What the routes work with.

    Attributes:
        feed: what the system looks like.
        cameras: frames of observation broadcasts.
        desk: where an admin's commands go.
        passwords: who may do what.
        hosts: names under which the page may be reached, beside this machine's own.
    """

    feed: Feed
    cameras: Cameras
    desk: Desk
    passwords: Passwords = field(default_factory=Passwords)
    hosts: Iterable[str] = ()

    def __post_init__(self) -> None:
        """Prepare sessions."""
        self.sessions = Sessions(self.passwords)
        self.attempts = Attempts()
        self.streams = 0

    def application(self) -> ASGIApp:
        """Return the application."""
        return Guard(Starlette(routes=self.routes()), self.hosts)

    def routes(self) -> list[BaseRoute]:
        """Return all routes. What a viewer may see is wrapped in ``_viewed``."""
        return [
            Route("/", self._viewed(_page("index.html"), is_page=True)),
            Route("/login", _page("login.html")),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/healthz", _healthz),
            Route("/metrics", self._viewed(self._metrics)),
            Route("/api/me", self._viewed(self._me)),
            Route("/api/state", self._viewed(self._state)),
            Route("/api/history", self._viewed(self._history)),
            Route("/api/stream", self._viewed(self._stream)),
            Route("/api/cameras/{service}", self._viewed(self._frames)),
            Route("/api/cameras/{service}/{index:int}", self._viewed(self._frame)),
            Route("/api/command", self._viewed(self._command), methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    # -- who may -----------------------------------------------------------------------------------

    def _role(self, request: Request) -> str | None:
        """Return the role of whoever asks, by its cookie or its Basic authorization."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return self.sessions.role_of(request.cookies.get(COOKIE))
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            _, _, password = base64.b64decode(given).decode().partition(":")
            return self._checked(request, password)
        return None

    def _checked(self, request: Request, password: str) -> str | None:
        """Return the role that a password gives; None if it is wrong or comes too soon."""
        address = request.client.host if request.client else ""
        if self.attempts.wait_s(address):
            return None
        role = self.passwords.role_of(password)
        self.attempts.note(address, role is not None)
        return role

    def _viewed(self, handler: Handler, is_page: bool = False) -> Handler:
        """Let only those in who may look."""

        async def guarded(request: Request) -> Response:
            role = self._role(request)
            if role is not None:
                request.state.role = role
                return await handler(request)
            if is_page:
                return RedirectResponse("/login", 303)
            headers = {"www-authenticate": "Basic"} if "authorization" in request.headers else {}
            return JSONResponse({"error": "log in first"}, 401, headers)

        return guarded

    async def _login(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        password = form.get("password", [""])[0]
        address = request.client.host if request.client else ""
        wait_s = self.attempts.wait_s(address)
        role = self._checked(request, password)
        if role is None:
            told = f"Too many attempts: wait {wait_s:.0f} seconds." if wait_s else "Wrong password."
            headers = {"retry-after": f"{wait_s + 1:.0f}"} if wait_s else {}
            page = (STATIC / "login.html").read_text(encoding="utf-8")
            page = page.replace('id="told"></p>', f'id="told">{told}</p>')
            return HTMLResponse(page, 429 if wait_s else 401, headers)
        response = RedirectResponse("/", 303)
        is_secure, cookie = request.url.scheme == "https", self.sessions.new(role)
        response.set_cookie(
            COOKIE, cookie, int(SESSION_S), secure=is_secure, httponly=True, samesite="strict"
        )
        return response

    async def _logout(self, request: Request) -> Response:
        response = RedirectResponse("/" if self.passwords.viewer is None else "/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def _me(self, request: Request) -> Response:
        return JSONResponse(
            {
                "role": request.state.role,
                "has_session": COOKIE in request.cookies,
                "has_admin": self.passwords.admin is not None,
            }
        )

    # -- what is seen ------------------------------------------------------------------------------

    async def _state(self, request: Request) -> Response:
        return Response(as_json(self.feed.state()), media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        """Answer Prometheus."""
        text = await run_in_threadpool(exposition, self.feed.snapshot)
        return Response(text, media_type=CONTENT_TYPE)

    async def _history(self, request: Request) -> Response:
        body = await run_in_threadpool(lambda: gzip.compress(as_json(self.feed.history.told()), 4))
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(body), media_type="application/json")
        headers = {"content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(body, media_type="application/json", headers=headers)

    async def _stream(self, request: Request) -> Response:
        if self.streams >= STREAMS_MAX:
            return PlainTextResponse("too many pages are open\n", 503)
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._told(), media_type="text/event-stream", headers=headers)

    async def _told(self) -> AsyncIterator[bytes]:
        """Yield each newest state; one that is slow to take them gets fewer."""
        loop, news, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(news.set)

        self.streams += 1
        unsubscribe = self.feed.subscribe(wake)
        until = time.monotonic() + STREAM_S
        try:
            while not self.feed.is_stopped and time.monotonic() < until:
                news.clear()
                state = self.feed.state(seen)
                seen = max([seen, *(event["id"] for event in state["events"])])
                yield b"data: " + as_json(state) + b"\n\n"
                try:
                    await asyncio.wait_for(news.wait(), PING_S)
                except asyncio.TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            self.streams -= 1
            unsubscribe()

    async def _frames(self, request: Request) -> Response:
        try:
            shot = await run_in_threadpool(self.cameras.newest, request.path_params["service"])
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 404)
        except AgentlaceError as error:
            return JSONResponse({"error": str(error)}, 503)
        sizes = [{"height": height, "width": width} for height, width in shot.shapes]
        frames = [{"name": n, **size} for n, size in zip(shot.names, sizes, strict=True)]
        return JSONResponse({"number": shot.number, "frames": frames})

    async def _frame(self, request: Request) -> Response:
        index = request.path_params["index"]
        try:
            shot = await run_in_threadpool(self.cameras.newest, request.path_params["service"])
            return Response(shot.jpegs[index], media_type="image/jpeg")
        except (AgentlaceError, ValueError, IndexError) as error:
            return JSONResponse({"error": str(error)}, 404)

    async def _command(self, request: Request) -> Response:
        if request.state.role != ADMIN:
            return JSONResponse({"error": "only an admin may do this: log in as one"}, 403)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return JSONResponse({"error": "send JSON"}, 415)
        try:
            told = await request.json()
            service, what = str(told["service"]), str(told["what"])
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "send a service and what it is to do"}, 400)
        by = f"the dashboard's admin at {request.client.host if request.client else '?'}"
        try:
            done = await run_in_threadpool(self.desk.order, service, what, by)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        except AgentlaceError as error:
            return JSONResponse({"error": str(error)}, 502)
        return JSONResponse({"done": done})


def _page(name: str) -> Handler:
    async def page(request: Request) -> Response:
        return HTMLResponse((STATIC / name).read_bytes())

    return page


async def _healthz(request: Request) -> Response:
    """Answer that the dashboard serves, whether or not the broker is there."""
    return PlainTextResponse("ok\n")
