"""Learner and actor in one process: the calls of both ends, without a broker."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agentlace.codec import Signature
from agentlace.errors import SchemaMismatch
from agentlace.logs import Refrain, about
from agentlace.service.measured import Measured
from agentlace.telemetry import Telemetry
from agentlace.trainer.checkpointer import Source
from agentlace.trainer.checkpoints import Checkpoints, Networks
from agentlace.trainer.manifest import Positions, SavedStore
from agentlace.trainer.pause_state import Pausable, PauseState
from agentlace.transport.weights import Version, snapshot

log = logging.getLogger(__name__)


class _SharedStores(dict[str, Any]):
    """The stores by name, as a checkpoint needs them. There are no streams, and no positions."""

    def sources(self) -> dict[str, Source]:
        """Return all stores; insertions wait only for a store's own lock."""

        def hold(timeout_s: float) -> AbstractContextManager[None]:
            return nullcontext()

        return {name: Source(store, hold, {}, dict) for name, store in self.items()}

    def commit(self, name: str, store: Any, positions: Positions) -> None:
        """Do nothing: no stream waits."""

    def take_over(self, name: str, saved: SavedStore) -> None:
        """Do nothing: there is no stream to go on with."""


class TrainerSMInterface(Measured, Pausable):
    """Stands for both TrainerServer and TrainerClient in one process with several threads.

    Both ends work on the same data store, so ``update`` has nothing to do. Thread-safe.

    The network callback runs in a caller's thread, before ``publish_network`` returns; but if it
    is running already, for another thread or because it publishes itself, then it is called with
    the newest network afterwards, where it is running. As over a broker, an exception of it is
    logged, each version comes at most once and never after a newer one, and versions may be
    skipped.

    Attributes:
        telemetry: takes what the program reports; nobody but its callbacks sees it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._network_callback: Callable[[Any], object] | None = None
        self._request_callback: Callable[[str, Any], Any] | None = None
        self._stores = _SharedStores()
        self._before = Version(0, 0)
        networks = Networks(lambda: Version(0, self.published_version), self._publish_after)
        self._checkpoints = Checkpoints("one process", None, self._stores, networks, bool)
        self._newest: tuple[int, Any, float] | None = None
        self._delivered = 0
        self._handed = 0
        self._check: Callable[[Any], None] | None = None
        self._refusal: SchemaMismatch | None = None
        self._is_delivering = False
        self._pause = PauseState()
        self._pauses = 0
        self.telemetry = Telemetry("trainer")
        self._refrain = Refrain()

    def _pause_state(self) -> PauseState:
        return self._pause

    def pause_actors(self, timeout_s: float = 10.0) -> list[str]:
        """Ask the actor to stand still, and wait until its program has seen it.

        Returns:
            ``["actor"]`` if it has not within ``timeout_s``, else nothing.
        """
        if not self._pause.pause:
            self._pauses += 1
            self._pause.tell(str(self._pauses))
        return [] if self._pause.wait_until_seen(timeout_s) else ["actor"]

    def resume_actors(self) -> None:
        """End the pause; if there is none, nothing happens."""
        self._pause.tell("")

    def recv_network_callback(self, callback: Callable[[Any], object], expect: Any = None) -> None:
        """Call back with each network, the newest one at once if there is one.

        Args:
            callback: called with the tree.
            expect: a tree like the networks that are expected; one that differs in structure,
                shape or dtype is refused, and :attr:`refused_network` says why.
        """
        check = None if expect is None else Signature(expect).check
        with self._lock:
            self._network_callback, self._check, self._handed = callback, check, 0
        self._deliver()

    def publish_network(self, payload: Any) -> int:
        """Hand a copy of a network to the callback, and return its number."""
        tree = snapshot(payload)
        with self._lock:
            number = self.published_version + 1
            self._newest = (number, tree, time.monotonic())
        self._deliver()
        return number

    def _deliver(self) -> None:
        """Call back with the newest network, until the callback has had that."""
        while (due := self._take()) is not None:
            callback, number, tree = due
            try:
                if self._fits(tree, number):
                    callback(tree)
            except Exception as error:
                text, fields = "the callback for network %d raised", about(error=error)
                self._refrain.say(log.exception, error, text, number, extra=fields)
            finally:
                with self._lock:
                    self._is_delivering = False

    def _fits(self, tree: Any, number: int) -> bool:
        try:
            if self._check is not None:
                self._check(tree)
        except SchemaMismatch as error:
            self._refusal = error
            text = "network %d is refused, the one before it stays: %s"
            self._refrain.say(log.error, error, text, number, error, extra=about(error=error))
            return False
        self._refusal, self._delivered = None, number
        return True

    def _take(self) -> tuple[Callable[[Any], object], int, Any] | None:
        """Return what this thread is to deliver; None if nothing, or if another call is at it."""
        with self._lock:
            callback, newest = self._network_callback, self._newest
            if self._is_delivering or callback is None or newest is None:
                return None
            if newest[0] <= self._handed:
                return None
            self._is_delivering = True
            self._handed = newest[0]
            return callback, newest[0], newest[1]

    @property
    def refused_network(self) -> SchemaMismatch | None:
        """Why the newest network was refused; None if it was not, or a later one fits."""
        return self._refusal

    @property
    def published_version(self) -> int:
        """Number of the newest published network, 0 before the first."""
        return self._newest[0] if self._newest else self._before.number

    def _publish_after(self, version: Version) -> None:
        self._before = version

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        extra: Any = None,
        stores: Sequence[str] | None = None,
        wait: bool = True,
    ) -> bool:
        """Save stores and the networks' number; see :meth:`TrainerServer.save`.

        A store of the program's own is saved while it is inserted into: it must lock itself.
        """
        return self._checkpoints.save(path, extra, stores, wait)

    def restore(
        self,
        path: str | os.PathLike[str] | None = None,
        stores: Sequence[str] | None = None,
        previous: bool = False,
    ) -> Any:
        """Fill the stores from a checkpoint of one process; see :meth:`TrainerServer.restore`."""
        return self._checkpoints.restore(path, stores, previous)

    @property
    def policy_version(self) -> int | None:
        """Number of the newest network received, None before the first."""
        return self._delivered or None

    @property
    def policy_age_s(self) -> float | None:
        """Seconds since the newest network was published."""
        return time.monotonic() - self._newest[2] if self._newest and self._delivered else None

    @property
    def lost(self) -> int:
        """Transitions that were lost on their way: none, the store is shared."""
        return 0

    @property
    def dropped(self) -> int:
        """Transitions that made room for others on their way: none, the store is shared."""
        return 0

    def register_request_callback(self, callback: Callable[[str, Any], Any]) -> None:
        """Answer requests with ``callback(type, payload)``."""
        self._request_callback = callback

    def request(self, type: str, payload: Any) -> Any:
        """Return the request callback's reply, None if there is no callback."""
        callback = self._request_callback
        return None if callback is None else callback(type, payload)

    def register_data_store(self, name: str, data_store: Any) -> None:
        """Remember the store that both ends share."""
        self._stores[name] = data_store

    def data_store(self, name: str) -> Any:
        """Return the store of this name, None if there is none."""
        return self._stores.get(name)

    def store_names(self) -> set[str]:
        """Return the names of all registered stores."""
        return set(self._stores)

    def start(self, threaded: bool = False) -> None:
        """Do nothing: there is nothing to start."""

    def stop(self) -> None:
        """End what serves its numbers; there is nothing else to stop."""
        self.telemetry.end()

    def __enter__(self) -> TrainerSMInterface:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def update(self) -> bool:
        """Do nothing: the store is shared."""
        return True

    def update_datastore(self, name: str, from_id: Any, confirm_update: bool = False) -> bool:
        """Return whether there is such a store; it is shared."""
        return name in self._stores

    def get_server_last_update_id(self, name: str) -> Any:
        """Return the store's newest ID, None if the store is unknown."""
        return self._stores[name].latest_data_id() if name in self._stores else None

    def start_async_update(self, interval: float = 10) -> None:
        """Do nothing: the store is shared."""

    def begin_episode(self, metadata: Any = None, store: str | None = None) -> None:
        """Do nothing: without a stream there is nothing to mark."""

    def end_episode(self, how: str, metadata: Any = None, store: str | None = None) -> None:
        """Do nothing: without a stream there is nothing to mark."""

    def discard_episode(self, store: str | None = None) -> None:
        """Do nothing: the store has the episode's transitions, and keeps them."""
