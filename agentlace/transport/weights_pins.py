"""Pins: receivers say which version they fetch, and the publisher keeps its leaves that long.

Each field of the hash ``weights:readers`` is a receiver, its value ``<version> <until>``, in the
broker's milliseconds. A receiver that was always too late for a version pins NEWEST: what is
the newest when the broker executes that, which the publisher finds out at its next announcement.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from agentlace.transport.connection import Channel
from agentlace.transport.keys import LEAF_MS, READERS_MS, ServiceKeys
from agentlace.transport.resp import Command, Reply

NEWEST = "newest"
PIN_MS = 30_000
"""A pin that is not renewed ends after this: so long a receiver that died costs a version."""
MAX_PIN_MS = READERS_MS // 2
RENEW_S = 5.0


class Pin:
    """A receiver's pin."""

    def __init__(self, channel: Channel, keys: ServiceKeys) -> None:
        self._channel = channel
        self._connects = 0
        self._key = keys.weights_readers
        self._reader = uuid.uuid4().hex
        self._held = ""
        self._written_s = 0.0
        self._life_ms = PIN_MS

    @property
    def is_held(self) -> bool:
        """Whether there is one, unless the broker refused it."""
        return bool(self._held)

    def hold(self, version: str) -> list[Command]:
        """Return what pins a version, nothing if it was pinned less than RENEW_S ago."""
        self._channel.connect()
        if self._channel.connects != self._connects:  # what was sent before may be lost
            self._channel.broker.measure_clock(self._channel)
            self._connects, self._held = self._channel.connects, ""
        now_s = time.monotonic()
        if version == self._held != NEWEST and now_s < self._written_s + RENEW_S:
            return []
        self._held, self._written_s = version, now_s
        until_ms = int(self._channel.broker.now_ms()) + self._life_ms
        return [
            ("HSET", self._key, self._reader, f"{version} {until_ms}"),
            ("PEXPIRE", self._key, READERS_MS),
        ]

    def release(self) -> list[Command]:
        """Return what ends the pin, nothing if there is none."""
        held, self._held = self._held, ""
        return [("HDEL", self._key, self._reader)] if held else []

    def note_loss(self) -> None:
        """Hold for longer from now on if what was pinned is gone since the pin's time was over."""
        if self._held and time.monotonic() - self._written_s > self._life_ms / 1000:
            self._life_ms = min(2 * self._life_ms, MAX_PIN_MS)


class Pinned(NamedTuple):
    """What the publisher has read: pinned versions, and readers whose pins are long over."""

    versions: set[str]
    over: list[bytes]


class Pins:
    """All receivers' pins, as the publisher reads them."""

    def __init__(self) -> None:
        self._meant: dict[bytes, tuple[bytes, set[str]]] = {}

    def read(self, table: Reply, now_ms: float, newest: Iterable[str]) -> Pinned:
        """Return what is pinned.

        Args:
            table: the broker's answer to HGETALL; nothing is pinned if that was refused.
            now_ms: the broker's time.
            newest: versions one of which is the newest of whoever has pinned that since last time.
        """
        pinned, before, self._meant = Pinned(set(), []), self._meant, {}
        fields = table if isinstance(table, list) else []
        for reader, value in zip(map(bytes, fields[::2]), map(bytes, fields[1::2]), strict=True):
            version, left_ms = _parsed(value, now_ms)
            if not -PIN_MS < left_ms < READERS_MS:
                pinned.over.append(reader)
            elif left_ms > 0 and version == NEWEST:
                known = before.get(reader)
                self._meant[reader] = known if known and known[0] == value else (value, set(newest))
                pinned.versions.update(self._meant[reader][1])
            elif left_ms > 0:
                pinned.versions.add(version)
        return pinned


def _parsed(value: bytes, now_ms: float) -> tuple[str, float]:
    """Return a pin's version and how many milliseconds it has left; none if it is damaged."""
    version, _, until = value.decode(errors="replace").partition(" ")
    return version, float(until) - now_ms if until.isdecimal() else -float("inf")


class Kept:
    """Keys of the leaves that the publisher has left in the broker, version by version.

    Those are the newest version's, those of the one before it, and of each that is pinned.
    """

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = {}

    @property
    def newest(self) -> list[str]:
        """The two newest versions."""
        return list(self._keys)[-2:]

    def add(self, version: str, keys: set[str], pinned: set[str]) -> None:
        """Note that a version was announced, and what :meth:`farewell` dropped."""
        stay = self._staying(version, pinned)
        same = self._keys.get(version, set())
        self._keys = {v: keys for v, keys in self._keys.items() if v in stay and v != version}
        self._keys[version] = keys | same

    def farewell(self, version: str, keys: set[str], pinned: set[str]) -> list[Command]:
        """Return what drops the keys of versions that go when this one is announced.

        Those that this version does not need get an expiry already: should the trainer be
        killed, nobody else would know them.
        """
        stay = self._staying(version, pinned)
        needed = keys.union(*(self._keys[v] for v in stay))
        gone = set[str]().union(*self._keys.values()) - needed
        commands: list[Command] = [("PEXPIRE", key, LEAF_MS) for key in needed - keys]
        return [*commands, ("DEL", *gone)] if gone else commands

    def _staying(self, version: str, pinned: set[str]) -> set[str]:
        last = [v for v in self._keys if v != version][-1:]
        return {*last, *(pinned & self._keys.keys())}
