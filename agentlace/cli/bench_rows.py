"""What ``agentlace bench`` measures, in a namespace of its own that is empty afterwards.

Both ends of each service are in this process: what travels goes to the broker and comes back.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BrokerURL, TrainerConfig
from agentlace.data import QueuedDataStore
from agentlace.errors import AgentlaceError, BrokerAuthFailed, RequestTimeout
from agentlace.operating.brokers import broker_info
from agentlace.trainer import TrainerClient, TrainerServer
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import keys_of
from agentlace.transport.resp import Command
from agentlace.transport.streams import Retention

MB = 1_000_000
OBSERVATION_BYTES = 1 << 20
NETWORK_BYTES = 5 * MB
TRANSITION_BYTES = 2 * 128 * 128 * 3
"""Two small cameras."""
CHUNK = 8
"""Transitions of one update."""
STORE = "bench"
MAX_TRANSITION_BYTES = 64 << 20
"""No more is sent, however fast the broker is."""
ROOM_BYTES = 128 << 20
"""A broker that has less room is left alone: what works with it may need that."""
MAX_COUNT = 20_000
LEAST = 4
"""With so many samples the first one, which connects and allocates, does not count."""
WAIT_S = 20.0


@dataclass(frozen=True)
class Row:
    """What one measurement has found.

    Attributes:
        name: what was measured.
        count: how often.
        median_ms: of one.
        p99_ms: of 100, at most one took longer.
        mb_per_s: megabytes (1,000,000 bytes) of payload per second, one after the other; 0 where
            the payload is small.
        per_s: of them per second.
        missing: why it could not be measured; empty if it was.
    """

    name: str
    count: int = 0
    median_ms: float = 0.0
    p99_ms: float = 0.0
    mb_per_s: float = 0.0
    per_s: float = 0.0
    missing: str = ""


class Bench:
    """A broker, a namespace of its own there, and how long each measurement may take.

    A context manager; at its end all keys of the namespace are removed.

    Args:
        url: of the broker; its namespace is left alone.
        seconds: for each measurement.
    """

    def __init__(self, url: BrokerURL, seconds: float) -> None:
        self.url = replace(url, namespace=f"bench-{uuid.uuid4().hex[:12]}")
        self.seconds = seconds
        self.port = 1 + uuid.uuid4().int % 65_000
        self.channel: Channel = Broker(self.url).channel()

    def __enter__(self) -> Bench:
        """Connect.

        Raises:
            BrokerUnreachable, BrokerAuthFailed: there is no broker, or it does not let us in.
            AgentlaceError: it has too little room.
        """
        try:
            self.channel.call("TIME")
            told = broker_info(self.channel)
            limit, used = int(told.get("maxmemory", 0)), int(told.get("used_memory", 0))
            if limit and limit - used < ROOM_BYTES:
                raise AgentlaceError(
                    f"the broker at {self.url} has room for {max(limit - used, 0) // MB} MB only, "
                    f"and a benchmark needs {ROOM_BYTES // MB} MB: it is left alone"
                )
        except BaseException:
            self.channel.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all keys of the namespace, as far as this user may."""
        with contextlib.suppress(AgentlaceError), contextlib.closing(self.channel):
            for key in self._left():
                self.channel.at(key).call("DEL", key)

    def _left(self) -> list[str]:
        """Return the keys of the namespace; where this user may not ask, those that last.

        The others expire within a minute.
        """
        try:
            return keys_of(self.channel, self.url.namespace)
        except BrokerAuthFailed:
            return [ServiceKeys(self.url.namespace, "action", self.port).seen]

    def where(self) -> str:
        """Return how the broker is reached."""
        host, number = self.channel.server or ("", 0)
        if self.url.scheme == "memory":
            return "inside this process"
        return f"TCP, {host} port {number}" if number else f"its Unix socket {host}"


def rows(bench: Bench, on_row: Callable[[str], object] = lambda name: None) -> Iterator[Row]:
    """Yield all measurements, as they are made.

    Args:
        bench: connected.
        on_row: called with the name of each before it begins.
    """
    for name, measure in MEASURES.items():
        on_row(name)
        try:
            yield replace(measure(bench), name=name)
        except BrokerAuthFailed as error:
            if not error.is_forbidden:
                raise
            yield Row(name, missing=f"user {error.user!r} may not do {error.command!r}")
        except RequestTimeout as error:
            yield Row(name, missing=str(error))


def round_trip(bench: Bench) -> Row:
    """Measure a question to the broker and its answer."""
    return _timed(bench, lambda: bench.channel.call("TIME"))


def list_echo(bench: Bench) -> Row:
    """Measure a push and a pop of 64 bytes in one write: what a call cannot be faster than."""
    key = ServiceKeys(bench.url.namespace, "action", bench.port).reply("echo")
    channel, value = bench.channel.at(key), bytes(64)
    commands: list[Command] = [("RPUSH", key, value), ("BLPOP", key, 1)]
    return _timed(bench, lambda: channel.checked(channel.exchange(commands)))


def act(bench: Bench) -> Row:
    """Measure an action of seven numbers and its reply."""
    with _robot(bench) as (_, client):
        payload = {"delta": np.zeros(7, np.float32)}
        return _timed(bench, lambda: client.act("move", payload))


def broadcast(bench: Bench) -> Row:
    """Measure an observation of 1 MiB, until its watcher has it."""
    arrived: queue.Queue[Any] = queue.Queue()
    with _robot(bench) as (server, client):
        client.register_obs_callback(arrived.put)
        noise = _noise(OBSERVATION_BYTES)

        def once() -> None:
            if not server.publish_obs({"image": noise}):
                raise RequestTimeout("an observation", WAIT_S)
            _next(arrived, "an observation")

        return _timed(bench, once, OBSERVATION_BYTES)


def transitions(bench: Bench) -> Row:
    """Measure chunks of eight camera transitions, from the actor's store into the trainer's."""
    with _trainer(bench) as (_, client, store):
        image = _noise(TRANSITION_BYTES)

        def once() -> None:
            for number in range(CHUNK):
                store.insert({"observations": image ^ np.uint8(number), "rewards": 0.0})
            client.update_datastore(STORE, -1, confirm_update=True)

        nbytes = CHUNK * TRANSITION_BYTES
        found = _timed(bench, once, nbytes, MAX_TRANSITION_BYTES // nbytes)
        return replace(found, per_s=CHUNK * found.per_s)


def network(bench: Bench) -> Row:
    """Measure a network of 5 MB, all of it new, until its actor has it."""
    arrived: queue.Queue[Any] = queue.Queue()
    with _trainer(bench) as (server, client, _):
        client.recv_network_callback(arrived.put)
        params = _noise(NETWORK_BYTES)

        def once() -> None:
            params[:] ^= np.uint8(1)
            server.publish_network({"params": params})
            _next(arrived, "a network")

        return _timed(bench, once, NETWORK_BYTES)


MEASURES: dict[str, Callable[[Bench], Row]] = {
    "round trip": round_trip,
    "list echo": list_echo,
    "act": act,
    "transitions, 98 kB": transitions,
    "observation, 1 MiB": broadcast,
    "network, 5 MB": network,
}


@contextlib.contextmanager
def _robot(bench: Bench) -> Iterator[tuple[ActionServer, ActionClient]]:
    config = ActionConfig(bench.port, ["move"], ["image"], broadcast_port=bench.port)
    with ActionServer(config, None, lambda key, payload: payload, broker=bench.url) as server:
        server.start(threaded=True)
        timeout_ms = 1000 * WAIT_S
        with ActionClient(
            bench.url.host, config, strict=True, timeout_ms=timeout_ms, broker=bench.url
        ) as client:
            yield server, client


@contextlib.contextmanager
def _trainer(bench: Bench) -> Iterator[tuple[TrainerServer, TrainerClient, QueuedDataStore]]:
    config, store = TrainerConfig(bench.port), QueuedDataStore(10 * CHUNK)
    with TrainerServer(config, broker=bench.url) as server:
        retention = Retention(MAX_TRANSITION_BYTES)
        server.register_data_store(STORE, QueuedDataStore(10 * CHUNK), retention)
        server.start(threaded=True)
        with TrainerClient(
            *(STORE, bench.url.host, config, store),
            timeout_ms=1000 * WAIT_S,
            strict=True,
            broker=bench.url,
        ) as client:
            yield server, client, store


def _timed(bench: Bench, once: Callable[[], object], nbytes: int = 0, most: int = MAX_COUNT) -> Row:
    """Do something again and again for the bench's time, at least once."""
    trips: list[float] = []
    end = time.monotonic() + bench.seconds
    while not trips or (time.monotonic() < end and len(trips) < most):
        began = time.perf_counter()
        once()
        trips.append(time.perf_counter() - began)
    if len(trips) >= LEAST:
        del trips[0]
    ordered, total = sorted(trips), sum(trips)
    return Row(
        "",
        len(trips),
        1000 * ordered[len(ordered) // 2],
        1000 * ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)],
        nbytes * len(trips) / total / MB,
        len(trips) / total,
    )


def _next(arrived: queue.Queue[Any], what: str) -> None:
    try:
        arrived.get(timeout=WAIT_S)
    except queue.Empty:
        raise RequestTimeout(what, WAIT_S) from None


def _noise(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return bytes that no compressor makes fewer."""
    return np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
