"""A pause of all actors, told by the trainer.

The trainer says in its presence key that it pauses, so the pause ends with its lease at the
latest, and whoever connects later or again reads it there; a channel only wakes. An actor's
program has *seen* a pause once ``is_paused`` told it, ``wait_while_paused`` waits, or what
``on_pause`` registered has returned; which one it has seen stands in the roll.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from agentlace.errors import AgentlaceError, BrokerAuthFailed, Closed, StoreFull
from agentlace.logs import about
from agentlace.trainer.pause_state import PauseState
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import LEASE_MS, ServiceKeys
from agentlace.transport.presence import Info, Presence, read_peer
from agentlace.transport.roll import Roll
from agentlace.transport.subscription import Subscription

log = logging.getLogger(__name__)

FIELD = "pause"
"""In the trainer's presence: what tells this pause from all others; absent if there is none."""
POLL_S = 0.02
"""How often the roll is read while actors are waited for."""
LOOK_S = 0.25
"""So long the program is given to look at a pause before the next message is waited for."""
TIDY_S = 60.0
"""How often actors that are gone are struck off the roll."""
JOIN_TIMEOUT_S = 5.0


class PauseWatch:
    """An actor's end. It begins to watch when the program first asks.

    Args:
        broker: where.
        keys: the trainer's.
        name: of the actor in the roll.
        server: returns what is known of the trainer, for the first answer.
    """

    def __init__(
        self, broker: Broker, keys: ServiceKeys, name: str, server: Callable[[], Info | None]
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._name = name
        self._server = server
        self._roll = Roll(keys)
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._channel: Channel | None = None
        self.state = PauseState(LEASE_MS / 1000)

    def start(self) -> PauseState:
        """Begin to watch, if that has not begun; returns the state."""
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                self._subscription = Subscription(self._broker, self._keys.pause_channel)
                self._channel = self._broker.channel(key=self._keys.prefix)
                self.state.tell(pause_of(self._server()))
                args = (self._subscription, self._channel)
                self._thread = threading.Thread(
                    target=self._run, args=args, name="watch pause", daemon=True
                )
                self._thread.start()
        return self.state

    def sign(self, channel: Channel) -> None:
        """Say in the roll that this actor is there, unless the broker does not let it."""
        try:
            self._roll.sign(channel, self._name, self.state.seen)
        except (StoreFull, BrokerAuthFailed) as error:  # it sees a pause all the same
            log.debug("actor %r is not on the roll: %s", self._name, error)

    def _run(self, subscription: Subscription, channel: Channel) -> None:
        backoff, signed = Backoff(), ""
        while not self._stop.is_set():
            try:
                subscription.newest()
                self.state.tell(pause_of(read_peer(channel, self._keys.server)))
                if self.state.pause and self.state.wait_until_seen(LOOK_S):
                    if signed != self.state.seen:
                        signed = self.state.seen
                        self.sign(channel)
                backoff.reset()
            except Closed:
                return
            except AgentlaceError as error:
                if backoff.is_news(error) and not self._stop.is_set():
                    fields = about(self._keys.labels, error=error)
                    text = "the pause of %s is not known: %s"
                    log.warning(text, self._keys.name, error, extra=fields)
                signed = ""
                self.state.expire()
                self._stop.wait(backoff.next_s())

    def stop(self) -> None:
        """Stop watching; who waits for the end of a pause is woken with Closed."""
        self._stop.set()
        self.state.close()
        with self._starting:
            thread, subscription, channel = self._thread, self._subscription, self._channel
        for each in (subscription, channel):
            if each is not None:
                each.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)


def pause_of(server: Info | None) -> str:
    """Return the pause that a trainer tells of; empty if there is none, or no trainer."""
    return str(server.get(FIELD) or "") if server else ""


class PauseSwitch:
    """The trainer's end.

    Args:
        keys: the trainer's.
    """

    def __init__(self, keys: ServiceKeys) -> None:
        self._keys = keys
        self._roll = Roll(keys)
        self._count = 0
        self._next_tidy_s = 0.0

    def pause(
        self, broker: Broker, presence: Presence, timeout_s: float, is_running: Callable[[], bool]
    ) -> list[str]:
        """Pause, and wait until all actors that are there have seen it; see TrainerServer."""
        deadline = time.monotonic() + timeout_s
        if not presence.info.get(FIELD):
            self._count += 1
            presence.info[FIELD] = f"{presence.info['token']}:{self._count}"
        with contextlib.closing(broker.channel(key=self._keys.prefix)) as channel:
            self._tell(channel, presence)
            while True:
                present = self._roll.present(channel)
                late = [n for n, seen in present.items() if seen != presence.info.get(FIELD)]
                if not late or time.monotonic() >= deadline or not is_running():
                    return sorted(late)
                threading.Event().wait(POLL_S)

    def resume(self, broker: Broker, presence: Presence) -> None:
        """End the pause; if there is none, nothing happens."""
        if presence.info.pop(FIELD, None):
            with contextlib.closing(broker.channel(key=self._keys.prefix)) as channel:
                self._tell(channel, presence)

    def _tell(self, channel: Channel, presence: Presence) -> None:
        presence.beat()
        channel.call(channel.pubsub().publish, self._keys.pause_channel, "")

    def tidy(self, channel: Channel) -> None:
        """Strike off the roll who is gone, from time to time; called at each heartbeat."""
        if time.monotonic() > self._next_tidy_s:
            self._roll.present(channel)
            self._next_tidy_s = time.monotonic() + TIDY_S
