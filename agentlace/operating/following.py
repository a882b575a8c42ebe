"""Reading along what passes through the broker, without taking part and without changing it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentlace import codec
from agentlace.errors import AgentlaceError, DecodeError
from agentlace.transport.broadcast import OBSERVATION
from agentlace.transport.connection import MARGIN_S, Broker, Channel
from agentlace.transport.keys import ServiceKeys, StoreKeys
from agentlace.transport.request_frames import REQUEST, REQUEST_STAMP
from agentlace.transport.streams import START, StreamId, names_in, newest_id
from agentlace.transport.subscription import Subscription

ACTORS_POLL_S = 1.0
"""How often it is looked for new actors."""
CHUNKS = 64
"""So many chunks are fetched at once."""
QUEUE = 64
"""So many of the requests that wait are looked at."""


@dataclass(frozen=True)
class Entry:
    """One entry of a stream.

    Attributes:
        actor: whose stream it is.
        incarnation: of that actor.
        first: number of its first transition.
        last: number of its last.
        missing: transitions between the entry before and this one that were not seen.
        nbytes: of its frame.
        content: the transitions, or a mark; why it cannot be read, if it cannot.
    """

    actor: str
    incarnation: int
    first: int
    last: int
    missing: int
    nbytes: int
    content: codec.Chunk | codec.Mark | AgentlaceError


class StreamFollower:
    """Reads a store's streams. It is no consumer: nothing is kept for it.

    Args:
        channel: to the broker, as a user that may read.
        keys: which store.
        actors: only these; all if empty.
        from_start: whether to begin with what is in the streams, or with what comes from now on.
    """

    def __init__(
        self, channel: Channel, keys: StoreKeys, actors: Collection[str], from_start: bool
    ) -> None:
        self._channel = channel.at(keys.prefix)
        self._keys = keys
        self._actors = frozenset(actors)
        self._positions: dict[str, StreamId] = {}
        self._next_look = 0.0
        self._look(from_start)

    @property
    def actors(self) -> list[str]:
        """Names of the actors whose streams are read."""
        return sorted(self._positions)

    def _look(self, from_start: bool) -> None:
        found = names_in(self._channel.call("SMEMBERS", self._keys.actors))
        for actor in found:
            if actor not in self._positions and actor in (self._actors or found):
                stream = self._keys.stream(actor)
                self._positions[actor] = START if from_start else newest_id(self._channel, stream)
        self._next_look = time.monotonic() + ACTORS_POLL_S

    def read(self, timeout_s: float) -> list[Entry]:
        """Return what has come, waiting for it up to ``timeout_s``; at most CHUNKS per actor.

        Raises:
            BrokerUnreachable: the broker is away; the next call reads on.
        """
        if time.monotonic() > self._next_look:
            self._look(from_start=True)  # all of an actor that has come since is new
        if not self._positions:
            timeout_s = max(min(timeout_s, self._next_look - time.monotonic()), 0.001)
            self._channel.wait(timeout_s)
            return []
        streams = {self._keys.stream(actor): actor for actor in self._positions}
        ids = [str(position) for position in self._positions.values()]
        read = ("XREAD", "COUNT", CHUNKS, "BLOCK", max(int(1000 * timeout_s), 1), "STREAMS")
        reply = self._channel.call(*read, *streams, *ids, timeout_s=timeout_s + MARGIN_S)
        return [
            self._entry(streams[bytes(key).decode()], StreamId.parse(at), fields)
            for key, entries in reply or ()
            for at, fields in entries
        ]

    def _entry(self, actor: str, at: StreamId, fields: list[Any]) -> Entry:
        before, self._positions[actor] = self._positions[actor], at
        values = dict(zip(map(bytes, fields[::2]), fields[1::2], strict=False))
        first, nbytes = at.number, 0
        content: codec.Chunk | codec.Mark | AgentlaceError
        try:
            first = int(bytes(values[b"first"]))
            frame = values.get(b"mark") or values[b"chunk"]
            nbytes = len(frame)
            decode = codec.decode_mark if b"mark" in values else codec.decode_chunk
            content = decode(frame)
        except AgentlaceError as error:
            content = error
        except (KeyError, ValueError) as error:
            content = DecodeError(f"an entry without {error}")
        goes_on = before.incarnation == at.incarnation
        missing = max(first - before.number - 1, 0) if goes_on else 0
        return Entry(actor, at.incarnation, first, at.number, missing, nbytes, content)


@dataclass(frozen=True)
class Observation:
    """One observation of a broadcast.

    Attributes:
        number: counted by its server.
        missed: observations between the one before and this one that were not seen.
        nbytes: of its frame.
        tree: the observation; why it cannot be read, if it cannot.
    """

    number: int
    missed: int
    nbytes: int
    tree: Any


class ObservationFollower:
    """Watches a robot's broadcast; of several that wait it gets the newest.

    Args:
        broker: where.
        keys: of the robot.
    """

    def __init__(self, broker: Broker, keys: ServiceKeys) -> None:
        self._keys = keys
        self._channel = broker.channel(key=keys.prefix)
        self._subscription = Subscription(broker, keys.obs_channel)
        self._last: tuple[str, int] | None = None
        self._subscription.newest()

    def read(self) -> list[Observation]:
        """Return the newest observation, waiting a second for it; nothing if there was none.

        Raises:
            BrokerUnreachable: the broker is away; the next call subscribes again.
        """
        message = self._subscription.newest()
        if message is not None and not message:  # it is too large to ride in a message
            message = self._channel.call("GET", self._keys.newest_obs)
        observation = None if message is None else self._observation(message)
        return [] if observation is None else [observation]

    def _observation(self, message: Any) -> Observation | None:
        nbytes = len(message)
        try:
            _, meta, tree = codec.decode(message, OBSERVATION)
            source, number = str(meta["source"]), int(meta["number"])
        except AgentlaceError as error:
            return Observation(0, 0, nbytes, error)
        except (KeyError, TypeError, ValueError) as error:
            return Observation(0, 0, nbytes, DecodeError(f"an observation without {error}"))
        before, self._last = self._last, (source, number)
        if before is None or before[0] != source:
            return Observation(number, 0, nbytes, tree)
        if number <= before[1]:
            return None
        return Observation(number, number - before[1] - 1, nbytes, tree)

    def close(self) -> None:
        """Unsubscribe."""
        self._subscription.close()
        self._channel.close()


@dataclass(frozen=True)
class Request:
    """A request that waits for its server.

    Attributes:
        what: such as ``act``.
        name: such as the key of the action.
        caller: of whom; the beginning of its identity.
        left_s: seconds until its deadline.
        nbytes: of its frame.
        payload: what it asks.
    """

    what: str
    name: str
    caller: str
    left_s: float
    nbytes: int
    payload: Any


class RequestFollower:
    """Looks at the requests that wait for a server; none is taken.

    Args:
        channel: to the broker, as a user that may read.
        keys: of the service.
    """

    def __init__(self, channel: Channel, keys: ServiceKeys) -> None:
        self._channel = channel.at(keys.prefix)
        self._keys = keys
        self._decoder = codec.StampedDecoder(REQUEST, REQUEST_STAMP, _named)
        self._known: set[tuple[bytes, int]] = set()

    def read(self) -> tuple[int, list[Request]]:
        """Return how many requests wait now, and those of them that were not seen before.

        Raises:
            BrokerUnreachable: the broker is away.
        """
        queue = self._keys.requests
        commands = [("LLEN", queue), ("LRANGE", queue, 0, QUEUE - 1)]
        waiting, frames = self._channel.checked(self._channel.exchange(commands))
        return int(waiting), list(self._new(frames))

    def _new(self, frames: list[Any]) -> Iterator[Request]:
        seen = set()
        for frame in frames:
            try:
                (what, name), (number, deadline_ms, caller, *_), payload = self._decoder.decode(
                    frame
                )
            except AgentlaceError:
                continue
            seen.add((caller, number))
            if (caller, number) not in self._known:
                left_s = (deadline_ms - self._channel.broker.now_ms()) / 1000
                who = bytes(caller).hex()[:8]
                yield Request(what, name, who, left_s, len(frame), payload)
        self._known = seen


def _named(meta: Mapping[str, Any]) -> tuple[str, str]:
    return str(meta.get("what")), str(meta.get("name"))
