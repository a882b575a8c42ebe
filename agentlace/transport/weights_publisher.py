"""The trainer's end of the weights."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace import codec
from agentlace.errors import (
    AgentlaceError,
    AlreadyServed,
    BrokerAuthFailed,
    BrokerUnreachable,
    Closed,
    DecodeError,
)
from agentlace.logs import about
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import LEAF_MS, ServiceKeys
from agentlace.transport.resp import Command, Reply
from agentlace.transport.weights import INLINE_BYTES, LeafKeys, Manifest, Version, batches
from agentlace.transport.weights_pins import Kept, Pinned, Pins

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Larger leaves are split over several keys."""
NONE_BEFORE = Version(0, 0)
STOP_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30.0


@dataclass
class _Snapshot:
    """A network as it was when it was published."""

    number: int
    data: memoryview
    taken_s: float


class WeightsPublisher:
    """Publishes networks from a thread of its own; of several that wait only the newest is sent.

    Args:
        broker: where.
        keys: of the trainer.
        after: what is published has larger numbers than this version's, and a newer incarnation.
        began_ms: when the trainer began, in the broker's time: no version is older.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        after: Version = NONE_BEFORE,
        began_ms: int = 0,
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._began_ms = began_ms
        self._channel = broker.channel(key=keys.prefix)
        self._changed = threading.Condition()
        self._waiting: _Snapshot | None = None
        self._sending: _Snapshot | None = None
        self._newest: _Snapshot | None = None
        self._failure: Exception | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._incarnation: int | None = None
        self._sent: tuple[_Snapshot, Manifest] | None = None
        self._connects = 0
        self._restored_connects = 0
        self._kept = Kept()
        self._pins = Pins()
        self._after = after
        self.published = after.number
        self.superseded = self.sent_bytes = 0

    @property
    def version(self) -> Version:
        """Return the version of what was published last, as far as its incarnation is known."""
        return Version(self._incarnation or self._after.incarnation, self.published)

    def publish(self, tree: Any) -> int:
        """Take a snapshot of a network and return its number; it is sent in the background.

        Blocks only for the copy, never for the broker.

        Raises:
            EncodeError: a value in it may not travel.
            AlreadyServed: a newer trainer has published since.
            BrokerAuthFailed: the network before this one was refused; it is tried again.
            Closed: after :meth:`stop`.
        """
        data = codec.encode(tree).copy()
        taken_s = time.monotonic()
        with self._changed:
            if self._stopping:
                raise Closed("publish_network after stop()")
            if isinstance(self._failure, (AlreadyServed, BrokerAuthFailed)):
                raise self._failure.with_traceback(None)
            self.published += 1
            self.superseded += self._waiting is not None
            self._waiting = self._newest = _Snapshot(self.published, data, taken_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self.published

    def restore(self, channel: Channel) -> None:
        """Send the newest network again if the broker has lost it; called at each heartbeat."""
        sent = self._sent
        if sent is None:
            return
        channel.connect()
        if channel.connects != self._restored_connects:  # it may have come back with older data
            there = self._announced(channel)
            is_lost = there is None or there.version < sent[1].version
        else:
            is_lost = not channel.call("EXISTS", self._keys.weights)
        with self._changed:
            if is_lost and self._is_idle():
                log.warning(
                    "the broker has lost the network: it is sent again", extra=self._about()
                )
                self._waiting, self._sent = self._newest, None
                self._changed.notify_all()
        self._restored_connects = channel.connects

    def _is_idle(self) -> bool:
        return self._waiting is None and self._sending is None

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._stopping)
                snapshot, self._waiting = self._waiting, None
                self._sending = snapshot
            if snapshot is None:
                return
            failure = self._try_to_send(snapshot, backoff)
            with self._changed:
                self._sending, self._failure = None, failure
                if failure is not None and not isinstance(failure, AlreadyServed):
                    self._waiting = self._waiting or snapshot
                self._changed.notify_all()
                if failure is None:
                    backoff.reset()
                elif self._changed.wait_for(lambda: self._stopping, backoff.next_s()):
                    return

    def _try_to_send(self, snapshot: _Snapshot, backoff: Backoff) -> Exception | None:
        try:
            self._send(snapshot)
        except AlreadyServed as error:
            text = "network %d was not published: %s"
            log.error(text, snapshot.number, error, extra=self._about(error))
            return error
        except Exception as error:
            self._sent = None  # what arrived is unknown: everything is sent again
            self._note(error, snapshot, backoff)
            return error
        return None

    def _note(self, error: Exception, snapshot: _Snapshot, backoff: Backoff) -> None:
        is_news = backoff.is_news(error) and not self._stopping
        if not isinstance(error, AgentlaceError):
            self._channel.disconnect()  # what is under way on it is unknown
            if is_news:
                text, fields = "network %d is tried again", self._about(error)
                log.error(text, snapshot.number, exc_info=error, extra=fields)
        elif is_news:
            text = "network %d waits for the broker: %s"
            log.warning(text, snapshot.number, error, extra=self._about(error))

    def _about(self, error: Exception | None = None) -> dict[str, Any]:
        return about(self._keys.labels, error=error)

    def _send(self, snapshot: _Snapshot) -> None:
        self._channel.connect()
        if self._channel.connects != self._connects:  # it may be another or an empty broker
            self._broker.measure_clock(self._channel)
            self._connects, self._sent = self._channel.connects, None
        if self._incarnation is None:
            self._open()
        assert self._incarnation is not None
        version = Version(self._incarnation, snapshot.number)
        if snapshot.data.nbytes <= INLINE_BYTES:
            head, leaves = snapshot.data, None
            self.sent_bytes += head.nbytes
        else:
            head, leaves = self._send_leaves(snapshot, version)
        published_ms = self._broker.now_ms() - (time.monotonic() - snapshot.taken_s) * 1000
        manifest = Manifest(version, published_ms, snapshot.data.nbytes, head, leaves)
        self._announce(manifest)
        self._sent = (snapshot, manifest)

    def _open(self) -> None:
        """Begin an incarnation: larger than the broker's time and every earlier one."""
        seconds, micros = self._channel.call("TIME")
        # A replica that has taken over since the trainer began has another clock.
        now_ms = max(int(seconds) * 1000 + int(micros) // 1000, self._began_ms)
        now_ms = max(now_ms, self._after.incarnation + 1)
        before = self._announced(self._channel)
        if before:
            self._kept.add(str(before.version), before.keys, set())
            now_ms = max(now_ms, before.version.incarnation + 1)
        self._incarnation = now_ms

    def _send_leaves(
        self, snapshot: _Snapshot, version: Version
    ) -> tuple[memoryview, list[LeafKeys]]:
        """Store the bytes of the leaves that changed; returns the header and all leaves' keys."""
        data = snapshot.data
        header_end, spans = codec.leaf_spans(data)
        unchanged = self._unchanged(data, spans)
        leaves = [unchanged.get(number, []) for number in range(len(spans))]
        changed = [number for number in range(len(spans)) if number not in unchanged]
        sized = []
        for number, start, end in _parts(spans, changed):
            key = self._keys.leaf(str(version), number, len(leaves[number]))
            value = codec.Frame([data[start:end]], end - start)
            sized.append((("SET", key, value, "PX", LEAF_MS), end - start))
            leaves[number].append(key)
        for batch in batches(sized):
            self._channel.checked(self._channel.exchange(batch, SEND_TIMEOUT_S))
        self.sent_bytes += sum(nbytes for _, nbytes in sized)
        return data[:header_end], leaves

    def _unchanged(self, data: memoryview, spans: list[tuple[int, int]]) -> dict[int, LeafKeys]:
        """Return the keys of the leaves that the broker already has, by their number."""
        if self._sent is None or self._sent[1].leaves is None:
            return {}
        before, keys = self._sent[0].data, self._sent[1].leaves
        _, spans_before = codec.leaf_spans(before)
        return {
            number: keys[number]
            for number, (now, then) in enumerate(zip(spans, spans_before, strict=False))
            if _same_bytes(data[now[0] : sum(now)], before[then[0] : sum(then)])
        }

    def _announced(self, channel: Channel) -> Manifest | None:
        return self._readable(channel.call("GET", self._keys.weights))

    def _readable(self, value: Reply) -> Manifest | None:
        try:
            return None if value is None else Manifest.decode(value)
        except DecodeError as error:
            text = "the network that is there cannot be read, and is replaced: %s"
            log.warning(text, error, extra=self._about(error))
            return None

    def _announce(self, manifest: Manifest) -> None:
        """Move the pointer, tell receivers and drop what nobody needs any more, at once."""
        channel, keys, version = self._channel, self._keys, str(manifest.version)
        publish, is_cluster = channel.pubsub().publish, self._broker.url.is_cluster
        pinned = self._watch(manifest)
        frame = manifest.encode()
        small = frame.nbytes <= INLINE_BYTES + (8 << 10)
        commands: list[Command] = [("MULTI",)]
        commands += [("PERSIST", key) for key in manifest.keys]
        commands.append(("SET", keys.weights, frame))
        news: list[Command] = [(publish, keys.weights_channel, frame if small else b"")]
        commands += [] if is_cluster else news
        commands += self._kept.farewell(version, manifest.keys, pinned.versions)
        if pinned.over:
            commands.append(("HDEL", keys.weights_readers, *pinned.over))
        replies = channel.checked(channel.exchange([*commands, ("EXEC",)], SEND_TIMEOUT_S))
        if replies[-1] is None:
            raise BrokerUnreachable(str(self._broker.url), "another trainer publishes as well")
        self._kept.add(version, manifest.keys, pinned.versions)
        if is_cluster:  # with it in the transaction, Valkey 9 does not look where the keys are
            channel.checked(channel.exchange(news))

    def _watch(self, manifest: Manifest) -> Pinned:
        """Watch the pointer, make sure that it is not of a newer trainer, and read the pins."""
        channel, keys = self._channel, self._keys
        watch = [("WATCH", keys.weights), ("GET", keys.weights), ("TIME",)]
        *replies, table = channel.exchange([*watch, ("HGETALL", keys.weights_readers)])
        _, value, (seconds, micros) = channel.checked(replies)
        newest = self._readable(value)
        if newest and newest.version > manifest.version:
            channel.call("UNWATCH")
            raise AlreadyServed(f"a newer trainer has published version {newest.version}")
        now_ms = int(seconds) * 1000 + int(micros) / 1000
        return self._pins.read(table, now_ms, self._kept.newest)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything published is with the broker; False if it is not in time."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s) and self._failure is None

    def stop(self) -> None:
        """Send what still waits, within STOP_TIMEOUT_S if the broker is there, and end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle() or self._failure, STOP_TIMEOUT_S)
            self._stopping = True
            self._waiting = None
            self._changed.notify_all()
        self._channel.close()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)


def _parts(spans: list[tuple[int, int]], numbers: list[int]) -> Iterator[tuple[int, int, int]]:
    """Return the number, the start and the end of each part of these leaves."""
    for number in numbers:
        offset, nbytes = spans[number]
        for start in range(offset, offset + nbytes, PART_BYTES):
            yield number, start, min(start + PART_BYTES, offset + nbytes)


def _same_bytes(a: memoryview, b: memoryview) -> bool:
    """Compare two buffers eight bytes at a time."""
    if a.nbytes != b.nbytes:
        return False
    words = a.nbytes // 8 * 8
    return a[words:] == b[words:] and np.array_equal(
        np.frombuffer(a[:words], np.uint64), np.frombuffer(b[:words], np.uint64)
    )
