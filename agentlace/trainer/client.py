"""An actor's end: transitions go out, networks come in, requests are made."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agentlace.config import BrokerURL, TrainerConfig, copy_of
from agentlace.errors import (
    AgentlaceError,
    Closed,
    RateLimited,
    RequestTimeout,
    UnknownRequest,
)
from agentlace.logs import Refrain, about
from agentlace.telemetry import Sample
from agentlace.trainer.async_update import FALSE_ERRORS, AsyncUpdate
from agentlace.trainer.episodes import EpisodeMarks
from agentlace.trainer.networks import NetworkClient
from agentlace.trainer.outbox import Outbox
from agentlace.trainer.request_settings import RequestSettings
from agentlace.trainer.stores import CONSUMER
from agentlace.transport import presence
from agentlace.transport.connection import Channel
from agentlace.transport.producer import Producer
from agentlace.transport.streams import Retention
from agentlace.transport.weights_receiver import WeightsReceiver
from agentlace.waits import Trying, Wait

CONFIRM_POLL_S = 0.002
GOODBYE_TIMEOUT_S = 1.0


class TrainerClient(NetworkClient, EpisodeMarks):
    """An actor's connection to its trainer.

    Args:
        name: of this client; the store's name if ``data_store`` is given.
        server_ip: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        config: the service; it is copied. Must equal the server's.
        data_store: store to send from; its name is the client's.
        data_stores: stores to send from, by name; beside ``data_store`` if both are given.
        log_level: of the logger ``agentlace.trainer``.
        wait_for_server: wait without end for broker and server, logging what for.
        timeout_ms: deadline of one ``update`` or ``request``.
        actor_id: identity of this actor. A restarted robot that gives the same one takes its
            stream over and shuts a zombie of itself out. Default: unique for this client.
        strict: raise errors that otherwise give None or False; default AGENTLACE_STRICT.
        broker: address; else AGENTLACE_BROKER, else ``server_ip``'s.
        hold_episodes: send an episode that was begun with :meth:`begin_episode` only once it has
            ended, so that one that is discarded reaches nobody. What is held back is bounded by
            its store's capacity. ``stop()`` ends a running one as aborted, and sends it.

    Raises:
        BrokerUnreachable, PeerAbsent: not there within five seconds.
        BrokerAuthFailed: the broker refuses the user or password.
        ConfigMismatch: the server was built with another config.
    """

    def __init__(
        self,
        name: str,
        server_ip: str,
        config: TrainerConfig,
        data_store: Any = None,
        data_stores: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        log_level: int = logging.INFO,
        wait_for_server: bool = False,
        timeout_ms: float = 800,
        actor_id: str | None = None,
        strict: bool | None = None,
        broker: str | BrokerURL | None = None,
        hold_episodes: bool = False,
    ) -> None:
        self.actor_id = actor_id or f"{name}.{uuid.uuid4().hex[:12]}"
        super().__init__("trainer", server_ip, config, broker, timeout_ms, strict, self.actor_id)
        logging.getLogger("agentlace.trainer").setLevel(log_level)
        self.client_name = name
        self.config = copy_of(config)
        self.req_rep_client = RequestSettings(self)
        self._update_lock = threading.RLock()
        self._refrains: dict[str, Refrain] = defaultdict(Refrain)
        self._updates: dict[str, Trying] = {}
        self._told: dict[str, Retention] = {}
        self._limit_lock = threading.Lock()
        self._last_call = float("-inf")
        self._stream_channel = self._broker.channel(key=self._keys.prefix)
        self._receivers: list[WeightsReceiver] = []
        self._async_update = AsyncUpdate(self.update)
        stores = dict(data_stores)
        if data_store is not None:
            stores[name] = data_store
        self._outboxes = {s: self._outbox(s, stores[s], hold_episodes) for s in stores}
        self._takes_part = bool(stores)
        try:
            self._connect(wait_for_server)
            if self._outboxes:
                self.update()
        except BaseException:
            self.stop()
            raise

    def _outbox(self, name: str, store: Any, holds: bool) -> Outbox:
        def retention() -> Retention:
            told = (self._server or {}).get("stores", {}).get(name)
            if told:  # while the trainer is away, what it told last holds
                self._told[name] = Retention.of_info(told)
            return self._told.get(name, Retention())

        def stores() -> int:
            return len((self._server or {}).get("stores", self._outboxes))

        args = (self._keys.store(name), self.actor_id, retention, stores)
        return Outbox(name, store, Producer(self._stream_channel, *args), holds)

    # -- transitions ---------------------------------------------------------------------------

    def update(self) -> bool:
        """Send all new transitions; returns when the broker has them.

        Blocks for at most ``timeout_ms`` per store. Thread-safe.

        Returns:
            False if the broker is away or has no room, the trainer does not know a store, or
            ``rate_limit`` forbids it; the transitions are kept and go with a later call. Also
            False if there is no store. The reason is in ``last_error``.

        Raises:
            EncodeError: a transition may not travel and was left out; all others were sent.
            ActorReplaced: a newer process uses this client's ``actor_id``.
        """
        if not self._outboxes:
            self.last_error = UnknownRequest("this client has no data store to update from")
            return False
        permit = _once(self._permit) if self.config.rate_limit else _no_limit
        errors = [self._update(name, -1, False, permit) for name in self._outboxes]
        self.last_error = next((error for error in errors if error is not None), None)
        return self.last_error is None

    def update_datastore(self, name: str, from_id: Any, confirm_update: bool = False) -> bool:
        """Send the new transitions of one store.

        Args:
            name: of the store.
            from_id: rows up to this ID are not sent; what was sent already is not sent again.
            confirm_update: also wait until the trainer's store has them.

        Returns:
            Whether the broker (the trainer's store) has them within ``timeout_ms``.

        Raises:
            EncodeError, ActorReplaced: as in :meth:`update`.
        """
        return self._update(name, from_id, confirm_update, self._permit) is None

    def _update(
        self, name: str, from_id: Any, confirm: bool, permit: Callable[[], None]
    ) -> AgentlaceError | None:
        """Send one store's new transitions; returns what forbade it, unless ``strict``."""
        self.last_error = None
        try:
            self._check_usable()
            with self._update_lock:
                self._send(name, from_id, confirm, permit)
            self._refrains[name].reset()
            self._updates.pop(name, None)
        except FALSE_ERRORS as error:
            self.last_error = error
            if isinstance(error, UnknownRequest):
                self._wait_for(name, str(error))
            if self.strict:
                raise
            write, fields = self._log.warning, about(self._keys.store(name).labels, error=error)
            text = "update of store %r: %s"
            self._refrains[name].say(write, error, text, name, error, extra=fields)
        return self.last_error

    def _send(self, name: str, from_id: Any, confirm: bool, permit: Callable[[], None]) -> None:
        outbox = self._known(name)
        outbox.skip_to(from_id)
        timeout_s = self.timeout_ms / 1000
        deadline = time.monotonic() + timeout_s
        outbox.send(timeout_s, self._chunk_meta(), permit)
        while confirm and not outbox.is_applied(self._stream_channel, CONSUMER):
            self._wait_for(name, f"the trainer to apply what was sent to store {name!r}")
            if time.monotonic() > deadline:
                raise RequestTimeout(f"confirmation of store {name!r}", timeout_s)
            if self._stopping.wait(CONFIRM_POLL_S):
                raise Closed(f"this client of {self._keys.name} was stopped")

    def _wait_for(self, store: str, what: str) -> None:
        self._updates.setdefault(store, Trying()).failed(what)

    def _known(self, name: str) -> Outbox:
        """Return the outbox of a store that both ends know."""
        if name not in self._outboxes:
            raise UnknownRequest(f"this client has no store {name!r}, but {sorted(self._outboxes)}")
        if self._server is not None and name not in self._server.get("stores", {}):
            self._server = presence.read_peer(self._stream_channel, self._keys.server)
            if self._server is not None and name not in self._server.get("stores", {}):
                raise UnknownRequest(
                    f"the trainer has no store {name!r}, but {sorted(self._server['stores'])}"
                )
        return self._outboxes[name]

    def _chunk_meta(self) -> dict[str, Any]:
        """Return what travels with each chunk: the policy that acted, as far as is known."""
        policy = self._policy
        return {} if policy is None else {"policy": list(policy)}

    def get_server_last_update_id(self, name: str) -> Any:
        """Return the ID of this client's last row that the trainer has applied.

        Returns:
            -1 before the first; None if the store is unknown or the broker is away.
        """

        def read() -> Any:
            with self._update_lock:
                self._stream_channel.be_back_within(self.timeout_ms / 1000)
                return self._known(name).applied_id(self._stream_channel, CONSUMER)

        try:
            return self._softly(read)
        except UnknownRequest as error:
            self.last_error = error
            self._warn("", error)
            return None

    def start_async_update(self, interval: float = 10) -> None:
        """Call ``update()`` every ``interval`` seconds in a thread, and once more at ``stop``.

        Raises:
            Closed: after :meth:`stop`.
        """
        self._check_usable()
        self._async_update.start(interval)

    # -- requests and networks -------------------------------------------------------------------

    def request(self, type: str, payload: Any) -> Any:
        """Call the trainer's ``request_callback`` and return its reply.

        Returns:
            None for a type that is not in the config's ``request_types``, on a timeout, or if
            ``rate_limit`` forbids it; the reason is in ``last_error``.

        Raises:
            EncodeError: a value in the payload may not travel.
        """
        if type not in self.config.request_types:
            self.last_error = UnknownRequest(
                f"unknown request type {type!r}; the config has {self.config.request_types}"
            )
            self._warn("", self.last_error)
            return None

        def call() -> Any:
            self._permit()
            return self._requests.call("request", type, payload, self.timeout_ms / 1000)

        return self._softly(call)

    def _permit(self) -> None:
        """Count one call against the config's ``rate_limit``."""
        limit = self.config.rate_limit
        if not limit:
            return
        with self._limit_lock:
            now = time.monotonic()
            if now - self._last_call < 1 / limit:
                raise RateLimited(f"more than rate_limit={limit} calls per second")
            self._last_call = now

    @property
    def lost(self) -> int:
        """Transitions that were overwritten in their store before they could be sent."""
        return sum(outbox.lost for outbox in self._outboxes.values())

    @property
    def dropped(self) -> int:
        """Transitions that made room at the broker before the trainer's store had them.

        Only with ``Retention(when_full="drop_oldest")``. A trainer that reads at this very moment
        may still get some of them; what it missed is in its ``counters()``.
        """
        return sum(outbox.producer.dropped for outbox in self._outboxes.values())

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        for name, outbox in self._outboxes.items():
            yield from outbox.measure({"store": name})

    def _waits(self) -> Iterator[Wait]:
        yield from super()._waits()
        for outbox in self._outboxes.values():
            yield from outbox.producer.waits()
        for update in list(self._updates.values()):
            yield from update.waits()

    # -- life ------------------------------------------------------------------------------------

    def _on_beat(self, channel: Channel) -> None:
        super()._on_beat(channel)
        for outbox in self._outboxes.values():
            outbox.producer.beat(channel)

    def stop(self) -> None:
        """Stop and say goodbye. Idempotent.

        In order: the asynchronous update sends once more, what is unconfirmed is sent, networks
        are no longer received, the streams are given free as soon as the trainer has read them.
        """
        if self._stopping.is_set() or self._is_inherited:
            return
        self._async_update.stop(GOODBYE_TIMEOUT_S)
        self._end_held()
        if self._presence.is_running:
            self._last_update(had_async=self._async_update.was_started)
        self._stopping.set()
        for receiver in self._receivers:
            receiver.stop()
        for outbox in self._outboxes.values():
            with contextlib.suppress(AgentlaceError), self._update_lock:
                outbox.producer.close(self._stream_channel, GOODBYE_TIMEOUT_S)
        self._stream_channel.close()
        super().stop()

    def _last_update(self, had_async: bool) -> None:
        pending = any(outbox.producer.pending for outbox in self._outboxes.values())
        channel = self._stream_channel
        if (had_async or pending) and not channel.is_lost:
            for name in self._outboxes:  # the last one is not counted against rate_limit
                with contextlib.suppress(AgentlaceError):
                    self._update(name, -1, False, lambda: None)


def _once(permit: Callable[[], None]) -> Callable[[], None]:
    """Return what asks at most once: an update is one call, however many stores it has.

    A refusal holds for all of them as well: else the moment from which on a call is permitted
    could come between two stores.
    """

    @functools.cache
    def refusal() -> RateLimited | None:
        try:
            permit()
        except RateLimited as error:
            return error
        return None

    def asked() -> None:
        if (error := refusal()) is not None:
            raise error.with_traceback(None)

    return asked


def _no_limit() -> None:
    """Permit everything."""
