"""A websocket server that speaks openpi's protocol.

A client gets the server's metadata first. Then each of its messages is an observation, and is
answered by an action, or by a text that says what failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentlace._version import __version__
from agentlace.config import address_of
from agentlace.errors import MissingExtra
from agentlace.inference.client import InferenceClient
from agentlace.inference.openpi import messages
from agentlace.inference.openpi.gateway import Gateway
from agentlace.logs import Refrain, about

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.http11 import Request, Response
except ImportError as error:
    raise MissingExtra("websockets", "openpi") from error

log = logging.getLogger(__name__)

HEALTH_PATH = "/healthz"
MAX_CLIENTS = 64
"""So many clients may be connected at a time; each has a thread while it waits for an answer."""
MAX_MESSAGE_BYTES = 64 << 20
CLOSE_TIMEOUT_S = 1.0


class OpenpiServer:
    """Answers openpi's clients with an interface of an inference service.

    Each client has a connection to the broker of its own, so a server that batches batches
    across them. A call that fails does not end a client's connection.

    Args:
        client: of the inference service; it stays the caller's.
        name: of the interface; with a version as ``policy@2``.
        host: address to bind. The protocol has no encryption: anything but the loopback is for
            a network that you trust.
        port: TCP port; 0 takes any that is free.
        api_key: clients must show it (``WebsocketClientPolicy(api_key=…)``); None lets all in.
        metadata: what each client gets first, beside the server's and the interface's names.
        max_clients: more than so many at a time are refused with HTTP 503.
        max_message_bytes: longer observations are refused.

    Raises:
        MissingExtra: websockets is not installed.
        EncodeError: the metadata may not travel.
    """

    def __init__(
        self,
        client: InferenceClient,
        name: str,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_clients: int = MAX_CLIENTS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._client = client
        self._name = name
        self._where = (host, port)
        self._api_key = api_key
        about = {"server": f"agentlace {__version__}", "interface": name}
        self._metadata = messages.pack({**about, **(metadata or {})})
        self._max_clients = max_clients
        self._max_message_bytes = max_message_bytes
        self._gateways: set[Gateway] = set()
        self._refrain = Refrain()
        self._threads = ThreadPoolExecutor(max_clients, thread_name_prefix="openpi")
        self._stopping = threading.Event()
        self._wake: Callable[[], object] = self._stopping.set

    def run(
        self,
        on_ready: Callable[[str], object] = lambda address: None,
        stop_signals: Iterable[int] = (),
    ) -> None:
        """Serve in this thread, once, until :meth:`stop`.

        Args:
            on_ready: called with the address (``ws://127.0.0.1:8000``) once clients may connect.
            stop_signals: which of them stop it as well; only in the main thread.

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            asyncio.run(self._serve(on_ready, stop_signals))
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Stop serving, from any thread; clients are told. Idempotent."""
        self._stopping.set()
        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            self._wake()

    async def _serve(self, on_ready: Callable[[str], object], stop_signals: Iterable[int]) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        for number in stop_signals:  # signal.signal would not wake a loop that is about to wait
            loop.add_signal_handler(number, stopped.set)
        host, port = self._where
        options: dict[str, Any] = {
            "compression": None,
            "max_size": self._max_message_bytes,
            "origins": [None],  # no web page may drive a robot
            "process_request": self._admit,
            "close_timeout": CLOSE_TIMEOUT_S,
        }
        async with serve(self._talk, host, port, **options) as server:
            self._wake = lambda: loop.call_soon_threadsafe(stopped.set)
            bound = next(iter(server.sockets)).getsockname()[1]
            on_ready(f"ws://{address_of(host, bound)}")
            try:
                if not self._stopping.is_set():
                    await stopped.wait()
            finally:
                for gateway in list(self._gateways):
                    gateway.close()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the HTTP answer to a client that gets no websocket."""
        if request.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._api_key is not None:
            shown = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(shown, f"Api-Key {self._api_key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "wrong or no API key\n")
        if len(self._gateways) >= self._max_clients:
            text = f"{self._max_clients} clients are connected already\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        gateway = Gateway(self._client, self._name)
        self._gateways.add(gateway)
        log.info("openpi client %s is there", connection.remote_address)
        loop = asyncio.get_running_loop()
        try:
            await connection.send(self._metadata)
            async for message in connection:
                if isinstance(message, str):
                    await connection.close(CloseCode.UNSUPPORTED_DATA, "observations are binary")
                    return
                answer = await loop.run_in_executor(self._threads, gateway.answer, message)
                if isinstance(answer, str):
                    peer = str(connection.remote_address)
                    why, text = (peer, answer[:80]), "openpi client %s: %s"
                    self._refrain.say(log.warning, why, text, peer, answer, extra=about(peer=peer))
                await connection.send(answer)
        except ConnectionClosed:
            pass
        finally:
            self._gateways.discard(gateway)
            gateway.close()
            log.info("openpi client %s is gone", connection.remote_address)
