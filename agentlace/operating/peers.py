"""Who is there, and what each says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agentlace.errors import DecodeError
from agentlace.operating.asking import ask
from agentlace.telemetry import Sample
from agentlace.transport.connection import Channel
from agentlace.transport.peer_info import peer_of
from agentlace.transport.resp import Reply

EXPECTED_BEAT_S = 2.5
"""A node that has not beaten for so long, though its key is still there, does not get to it."""
_PLACE = re.compile(r"(?P<kind>[a-z]+):(?P<port>\d+)\}:(?P<end>server|seen|client)(:.+)?")


@dataclass(frozen=True)
class Event:
    """Something that a node tells of.

    Attributes:
        at_ms: when, by the node's own clock.
        kind: such as ``reconnect``.
        text: for people.
    """

    at_ms: float
    kind: str
    text: str


@dataclass(frozen=True)
class Peer:
    """One node: a server, or a client of one.

    Attributes:
        service: the service that it serves or calls, such as ``trainer:5555``.
        is_server: whether it serves it.
        does: what it is: ``trainer``, ``actor``, ``recorder``, ``action``, ``client of action``…
        name: of a client; a server is called like its service.
        host: where it runs.
        pid: its process there.
        version: of its agentlace; empty if it does not say.
        token: tells it from others of its name.
        is_there: False for a server that was here within the last days and is gone.
        beat_s: seconds since its last heartbeat.
        idle_s: seconds since it last counted anything, None if it does not say.
        waits: what it waits for, as it says; the longest wait first.
        samples: its numbers.
        events: what it tells of, the newest last.
        config: what both ends compare.
        stores: a trainer's, with the retention of each.
        told_ms: when it told all this, in the broker's time.
        is_paused: whether it is a trainer that has paused its actors.
    """

    service: str
    is_server: bool
    does: str
    name: str
    host: str
    pid: int
    version: str
    token: str
    is_there: bool
    beat_s: float
    idle_s: float | None
    waits: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    events: tuple[Event, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    stores: dict[str, Any] = field(default_factory=dict)
    told_ms: float = 0.0
    is_paused: bool = False

    @property
    def is_late(self) -> bool:
        """Whether it is there and its heartbeat is not: stopped, stuck, or cut off."""
        return self.is_there and self.beat_s > EXPECTED_BEAT_S

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return the sum of its samples of a name that have these labels, None without any."""
        wanted = labels.items()
        found = [s.value for s in self.samples if s.name == name and wanted <= s.labels.items()]
        return sum(found) if found else None


def peers(channel: Channel, namespace: str, keys: Iterable[str]) -> list[Peer]:
    """Return the nodes whose presence keys are among these, servers first; damaged ones left out.

    A server that is gone is listed, as far as the broker remembers it.
    """
    prefix = f"al:{{{namespace}:"
    places = {key: _PLACE.fullmatch(key.removeprefix(prefix)) for key in keys}
    ours = {key: place for key, place in places.items() if place is not None}
    values = ask(channel, list(ours), "GET")
    channel.checked(values)
    told = [
        peer
        for (key, place), value in zip(ours.items(), values, strict=True)
        for peer in _peer(channel, place, key, value)
    ]
    # Servers of one number share a key beside those of their own.
    found = list({(p.service, p.is_server, p.is_there, p.token): p for p in told}.values())
    served = {peer.service for peer in found if peer.is_server and peer.is_there}
    found = [peer for peer in found if peer.is_there or peer.service not in served]
    return sorted(found, key=lambda peer: (peer.service, not peer.is_server, peer.name))


def _peer(channel: Channel, place: re.Match[str], key: str, value: Reply) -> Iterator[Peer]:
    if value is None:
        return
    try:
        told = peer_of(value, key)
    except DecodeError:
        return
    beat_s = (channel.broker.now_ms() - told["progress_ms"]) / 1000
    is_there, is_server = place["end"] != "seen", place["end"] != "client"
    yield _of(told, f"{place['kind']}:{place['port']}", is_server, is_there, beat_s)


def _of(told: dict[str, Any], service: str, is_server: bool, is_there: bool, beat_s: float) -> Peer:
    kind = service.split(":")[0]
    role = kind if is_server else f"client of {kind}"
    idle_s = told.get("idle_s")
    return Peer(
        *(service, is_server, _text(told.get("does")) or role, _text(told["name"])),
        *(_text(told["host"]), told["pid"], _text(told.get("version")), told["token"]),
        *(is_there, max(beat_s, 0.0)),
        float(idle_s) if isinstance(idle_s, (int, float)) else None,
        tuple(_text(wait) for wait in _list(told, "waits")),
        tuple(_samples(_list(told, "samples"))),
        tuple(_events(_list(told, "events"))),
        told.get("config", {}),
        told.get("stores", {}),
        told_ms=float(told["progress_ms"]),
        is_paused=bool(told.get("pause")),
    )


def _samples(told: list[Any]) -> Iterator[Sample]:
    for sample in told:
        match sample:
            case [str(name), dict(labels), int() | float() as value]:
                yield Sample(name, float(value), {str(k): str(v) for k, v in labels.items()})


def _events(told: list[Any]) -> Iterator[Event]:
    for event in told:
        match event:
            case [int() | float() as at_ms, str(kind), str(text)]:
                yield Event(at_ms, kind, text)


def _list(told: dict[str, Any], name: str) -> list[Any]:
    value = told.get(name)
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return "" if value is None else str(value)
