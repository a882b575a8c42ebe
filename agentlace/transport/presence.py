"""Who is there: presence keys, kept alive by a heartbeat, and the server's lease.

Every node keeps one key with a time to live. A server's key is also its lease: while it lives,
a second server of the same identity is refused, and what it says (config, stores) is what
clients compare with.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace.errors import AgentlaceError, AlreadyServed, BrokerAuthFailed, StoreFull
from agentlace.logs import Refrain, about
from agentlace.progress import Pace
from agentlace.telemetry import Telemetry
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.identity import is_dead
from agentlace.transport.keys import HEARTBEAT_S, LEASE_MS, SEEN_MS
from agentlace.transport.peer_info import PRESENT, Info, absent, read_peer

__all__ = ["Info", "Presence", "absent", "read_peer"]

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
GOODBYE_TIMEOUT_S = 1.0
CLOCK_EVERY_S = 30.0
"""How often the broker's clock is measured anew."""
PEER_POLL_S = 0.05


class Presence:
    """One node's presence key and its heartbeat.

    Args:
        broker: where.
        key: the presence key.
        info: what :func:`describe` returned; changes to it go out with the next beat.
        seen: key that keeps the last beat after the node is gone, for servers.
        on_beat: further work for each beat, on the heartbeat's own channel and thread.
        on_replaced: called once, from the heartbeat's thread, if another server has taken over,
            with the error that its publishing raises from then on.
        telemetry: what else the node says of itself, with each beat.
        shared: a further key, which several servers of one service keep together: whoever
            looks for the service finds one of them there.
        on_leave: called at the end, with ``shared``, on the heartbeat's channel: does what is
            left to do, and returns whether no other server keeps the shared key.
    """

    def __init__(
        self,
        broker: Broker,
        key: str,
        info: Info,
        seen: str | None = None,
        on_beat: Callable[[Channel], None] | None = None,
        on_replaced: Callable[[AlreadyServed], None] | None = None,
        telemetry: Telemetry | None = None,
        shared: str | None = None,
        on_leave: Callable[[Channel], bool] | None = None,
    ) -> None:
        self._broker = broker
        self._shared = shared
        self._on_leave = on_leave
        self._telemetry = telemetry
        self._key = key
        self.info = info
        self._seen = seen
        self._on_beat = on_beat
        self._on_replaced = on_replaced
        self._channel = broker.channel(key=key)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._measured = time.monotonic()
        self._met_connects = 0
        self._beaten_s = 0.0
        self._is_hidden = False
        self.reconnects = 0
        self.replaced = threading.Event()

    def acquire(self, exclusive: bool) -> None:
        """Announce the node; blocks up to the lease's time while a dead server's lease ends.

        Raises:
            AlreadyServed: exclusive, and another live server holds the key.
        """
        try:
            self._acquire(exclusive)
        except BaseException:
            self._channel.disconnect()
            raise

    def _acquire(self, exclusive: bool) -> None:
        self._broker.measure_clock(self._channel)
        deadline = time.monotonic() + (LEASE_MS + 1000 * HEARTBEAT_S) / 1000
        first: Any = None
        pace = Pace()
        while exclusive and not self._try_acquire():
            peer = read_peer(self._channel, self._key)
            beat = peer and (peer["token"], peer["progress_ms"])
            if (first and beat and beat != first) or time.monotonic() > deadline:
                raise self._already_served(peer or PRESENT)
            first = first or beat
            if pace.is_due():
                text = "%s waits for the lease of one that may be dead to end"
                log.warning(text, self.info["name"], extra=about())
            self._stop.wait(PEER_POLL_S)
        if not exclusive:
            self._announce()

    def _announce(self) -> None:
        try:
            self._write(self._channel)
        except BrokerAuthFailed as error:
            if not error.is_forbidden or self._shared is None:
                raise
            text, fields = "%s keeps no key of its own: %s", about(error=error)
            log.warning(text, self.info["name"], error, extra=fields)
            self._key, self._shared = self._shared, None  # users' rules of an earlier version
            self._write(self._channel)

    def _note_forbidden(self, error: BrokerAuthFailed) -> None:
        """Go on unannounced if this user may only read; a server must be found."""
        if not error.is_forbidden or self.info["role"] == "server":
            raise error
        if not self._is_hidden:
            text = "%s goes unannounced: %s"
            log.warning(text, self.info["name"], error, extra=self._about(error))
        self._is_hidden = True

    def _about(self, error: Exception | None = None) -> dict[str, Any]:
        return about(peer=self.info["name"], error=error)

    def _already_served(self, peer: Info) -> AlreadyServed:
        return AlreadyServed(
            f"{self.info['role']} {self.info['name']!r} is already served by {peer['host']} "
            f"pid {peer['pid']} at {self._broker.url}: stop it, or use another port_number"
        )

    def _try_acquire(self) -> bool:
        """Take the key if it is free or its owner certainly dead."""
        channel = self._channel
        if channel.call("SET", self._key, self._json(), "NX", "PX", LEASE_MS) is None:
            channel.call("WATCH", self._key)
            peer = read_peer(channel, self._key)
            if peer is None or not is_dead(peer):
                channel.call("UNWATCH")
                return False
            commands = [("MULTI",), ("SET", self._key, self._json(), "PX", LEASE_MS), ("EXEC",)]
            if channel.checked(channel.exchange(commands))[-1] is None:
                return False
        self._write(channel)
        return True

    def _json(self) -> str:
        self.info["progress_ms"] = round(self._broker.now_ms())
        told = {} if self._telemetry is None else self._telemetry.told()
        return json.dumps({**self.info, **told})  # others may add to it meanwhile

    def _write(self, channel: Channel) -> None:
        """Refresh the key, unless another server has taken it while this one was away."""
        if self._is_hidden:
            return
        channel.call("WATCH", self._key)
        peer = read_peer(channel, self._key)
        if peer and peer["token"] != self.info["token"] and self.info.get("exclusive"):
            channel.call("UNWATCH")
            self._replace(peer)
            return
        value = self._json()
        sets = [("SET", key, value, "PX", LEASE_MS) for key in self._kept()]
        replies = channel.exchange([("MULTI",), *sets, ("EXEC",)])
        try:
            if channel.checked(replies)[-1] is not None and self._seen:
                channel.call("SET", self._seen, value, "PX", SEEN_MS)
        except StoreFull:  # a full broker lets nobody write, but everybody stay
            for key in self._kept():
                channel.call("PEXPIRE", key, LEASE_MS)
        except BrokerAuthFailed as error:
            self._note_forbidden(error)

    def _kept(self) -> list[str]:
        """Return the keys that this node keeps alive."""
        return [self._key] if self._shared is None else [self._key, self._shared]

    def _replace(self, peer: Info) -> None:
        if self.replaced.is_set():
            return
        self.replaced.set()
        error = self._already_served(peer)
        log.error("this server ends: %s", error, extra=self._about(error))
        if self._on_replaced:
            self._on_replaced(error)

    @property
    def is_running(self) -> bool:
        """Whether the heartbeat was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the heartbeat."""
        thread = threading.Thread(target=self._run, name=f"beat {self._key}", daemon=True)
        thread.start()  # before it is kept: what a Ctrl-C leaves unstarted cannot be joined
        self._thread = thread

    def beat(self) -> None:
        """Refresh the key now, from any thread, unless another server has taken over."""
        with self._lock:
            if not self.replaced.is_set():
                self._write(self._channel)

    def _run(self) -> None:
        backoff, pause_s, connects = Backoff(), HEARTBEAT_S, self._channel.connects
        refrain = Refrain()
        while not self._stop.wait(pause_s) and not self.replaced.is_set():
            try:
                self._beat_and_work()
            except AgentlaceError as error:
                if backoff.is_news(error):
                    text = "%s waits for the broker: %s"
                    log.warning(text, self.info["name"], error, extra=self._about(error))
                pause_s = backoff.next_s()
                continue
            except Exception as error:
                text, fields = "%s: the heartbeat's work failed", self._about(error)
                refrain.say(log.exception, error, text, self.info["name"], extra=fields)
            if self._channel.connects != connects:
                self._note_back()
                connects, self._measured = self._channel.connects, 0.0
            backoff.reset()
            pause_s = HEARTBEAT_S

    def _note_back(self) -> None:
        self.reconnects += 1
        text = "%s is connected to %s again"
        log.warning(text, self.info["name"], self._broker.url, extra=self._about())
        if self._telemetry is not None:
            self._telemetry.note("reconnect", f"connected to {self._broker.url} again")

    def _beat_and_work(self) -> None:
        with self._lock:
            self._channel.connect()
            if self._channel.connects != self._met_connects:
                self._broker.meet(self._channel, self._beaten_s)
                self._met_connects = self._channel.connects
            self._broker.follow_clock(self._channel)
            self._write(self._channel)
            self._beaten_s = time.monotonic()
            if self._on_beat and not self.replaced.is_set():
                self._on_beat(self._channel)
            if time.monotonic() - self._measured > CLOCK_EVERY_S:
                self._broker.measure_clock(self._channel)
                self._measured = time.monotonic()

    def stop(self) -> None:
        """Say goodbye: stop the heartbeat and remove the key if it is still ours."""
        self._stop.set()
        thread = self._thread
        if thread and thread is not threading.current_thread():
            thread.join(GOODBYE_TIMEOUT_S)
            if thread.is_alive():  # it waits for a broker that does not answer
                self._channel.interrupt()
                thread.join(JOIN_TIMEOUT_S)
        with contextlib.suppress(AgentlaceError), self._lock:
            if self._channel.is_connected and not self._is_hidden:
                self._remove_key()
        self._channel.close()

    def _remove_key(self) -> None:
        channel = self._channel
        channel.timeout_s = GOODBYE_TIMEOUT_S
        is_last = self._on_leave is None or self._on_leave(channel)
        self._remove(self._key)
        if self._shared is not None and is_last:
            self._remove(self._shared)

    def _remove(self, key: str) -> None:
        """Remove a key, unless it is another living server's."""
        channel = self._channel
        channel.call("WATCH", key)
        peer = read_peer(channel, key)
        if peer is not None and self._is_ours(peer["token"]):
            channel.exchange([("MULTI",), ("DEL", key), ("EXEC",)])
        else:
            channel.call("UNWATCH")

    def _is_ours(self, token: str) -> bool:
        """Whether what a key says is of this server, or of one that shared it and is gone."""
        if token == self.info["token"] or self._shared is None:
            return bool(token == self.info["token"])
        replica = self._key.replace(self.info["token"], token)
        return read_peer(self._channel, replica) is None
