"""Finding out, beside the producer, what the broker will not forget any more."""

from __future__ import annotations

import logging
import threading
import time

from agentlace.errors import AgentlaceError
from agentlace.logs import Refrain, about
from agentlace.transport import facts
from agentlace.transport.connection import MARGIN_S, Broker, Channel
from agentlace.transport.held import Held
from agentlace.transport.keys import SYNCED_MS, StoreKeys
from agentlace.transport.resp import ErrorReply
from agentlace.transport.streams import START, cursors

log = logging.getLogger(__name__)

FORGETFUL_S = 3.0
"""A broker may forget what it confirmed so shortly before, with ``appendfsync everysec``.

It begins a write to disk once a second, and puts that off for up to two if the one before is
still under way.
"""
POLL_S = 0.5
WAIT_S = 2.0
"""The broker is asked to wait no longer than this for its disk."""
JOIN_TIMEOUT_S = 5.0


class Durability:
    """Releases what a producer holds as soon as the broker has it safely; in its own thread.

    That is, of a broker with a log: FORGETFUL_S have passed since it confirmed, and then it says
    that what it was told before is on disk (WAITAOF, where it knows that). Neither is enough
    alone: a slow disk may take longer, and some servers answer WAITAOF too early with ``everysec``
    (Valkey 9.1.2; Redis 7.4 before https://github.com/redis/redis/pull/13793).

    Where replicas may take over, one of them must have it too (WAIT).

    A broker without a log forgets everything; there, what every registered consumer has read is
    released.

    Args:
        broker: where; a connection of its own is made, so that no ``update()`` waits for a disk.
        keys: which store.
        actor: whose stream.
        held: what is released.
    """

    def __init__(self, broker: Broker, keys: StoreKeys, actor: str, held: Held) -> None:
        self._broker = broker
        self._keys = keys
        self._actor = actor
        self._held = held
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._refrain = Refrain()
        self._thread: threading.Thread | None = None
        self._channel: Channel | None = None
        self._connects = 0
        self._told = facts.Facts(b"", False, 0, b"")
        self._can_wait = True
        self.incarnation = 0

    def wake(self) -> None:
        """Begin to look, if that is not done already; what is held has changed."""
        if self._thread is None:
            self._stop.clear()
            self._channel = channel = self._broker.channel(key=self._keys.prefix)
            args, name = (channel,), f"durability {self._keys.name}"
            self._thread = threading.Thread(target=self._run, args=args, name=name, daemon=True)
            self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def _run(self, channel: Channel) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            while len(self._held) and not self._stop.wait(POLL_S):
                try:
                    self._look(channel)
                except AgentlaceError as error:  # the producer says so; what is held stays
                    log.debug("store %r: nothing is known of the disk: %s", self._keys.name, error)
                except Exception as error:
                    text, fields = "store %r: looking after the disk failed", self._keys.labels
                    fields = about(fields, peer=self._actor, error=error)
                    self._refrain.say(log.exception, error, text, self._keys.name, extra=fields)

    def _look(self, channel: Channel) -> None:
        channel.connect()
        if channel.connects != self._connects:
            self._told = facts.ask(channel, self._keys)
            self._connects, self._can_wait = channel.connects, True
        run = self._told.run
        if not run:
            return  # what was confirmed by another run of the broker could not be told apart
        if not self._told.is_logged:
            return self._held.release(run, self._read(channel))
        number = self._held.newest(run, time.monotonic() - FORGETFUL_S)
        if number and self._is_on_disk(channel) and self._is_replicated(channel):
            self._held.release(run, number)

    def _read(self, channel: Channel) -> int:
        """Return the last transition that every consumer has read."""
        read = min(cursors(channel, self._keys, self._actor).values(), default=START)
        return read.number if read.incarnation == self.incarnation else 0

    def _is_on_disk(self, channel: Channel) -> bool:
        """Whether what was written before this call is on disk by now, as far as is told."""
        if self._can_wait:
            # WAITAOF speaks of its own connection's writes only, so there must be one.
            mark = ("SET", self._keys.synced(self._actor), 1, "PX", SYNCED_MS)
            wait = ("WAITAOF", 1, 0, int(1000 * WAIT_S))
            marked, waited = channel.exchange([mark, wait], WAIT_S + MARGIN_S)
            if not isinstance(waited, ErrorReply):
                return not isinstance(marked, ErrorReply) and waited[0] >= 1
            self._can_wait = False
        return facts.is_written(channel)

    def _is_replicated(self, channel: Channel) -> bool:
        """Whether a replica that may take over has what was written before this call."""
        if not self._broker.url.has_replicas or facts.replicas(channel) is None:
            return True
        mark = ("SET", self._keys.synced(self._actor), 1, "PX", SYNCED_MS)
        wait = ("WAIT", 1, int(1000 * WAIT_S))
        marked, waited = channel.exchange([mark, wait], WAIT_S + MARGIN_S)
        if isinstance(waited, ErrorReply):  # this user may not ask: time must do
            return True
        return not isinstance(marked, ErrorReply) and int(waited) >= 1

    def stop(self) -> None:
        """Stop looking; :meth:`wake` begins anew."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        self._wake.set()
        if self._channel is not None:
            self._channel.close()
        thread.join(JOIN_TIMEOUT_S)
