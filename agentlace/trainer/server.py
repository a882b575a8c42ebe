"""The trainer's end: stores that are filled from the streams, and networks that go out."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentlace.config import BrokerURL, TrainerConfig, copy_of
from agentlace.errors import AgentlaceError, AlreadyServed, Closed, UnknownRequest
from agentlace.service import Server
from agentlace.telemetry import Sample
from agentlace.trainer.checkpoints import Checkpoints, Networks
from agentlace.trainer.commands import Commands
from agentlace.trainer.pause import PauseSwitch
from agentlace.trainer.saving import CheckpointPolicy
from agentlace.trainer.stores import DataCallback, Stores
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.cursor import Lease
from agentlace.transport.streams import Retention
from agentlace.transport.weights import Version
from agentlace.transport.weights_publisher import WeightsPublisher

RequestCallback = Callable[[str, Any], Any]
"""Called with a request's type and payload; returns the reply."""


class TrainerServer(Server):
    """Fills data stores with the transitions of all actors, and publishes networks to them.

    Every transition that an actor's ``update()`` has handed to the broker reaches the store
    exactly once and in order per actor; a trainer that starts with empty stores reads all that
    the streams still hold. One thread per store inserts; give it a thread-safe store.

    Args:
        config: the service; it is copied.
        data_callback: called after each insertion, in the store's thread.
        request_callback: called for each request, in the requests' thread.
        log_level: of the logger ``agentlace.trainer``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
        checkpoint: folder of the trainer's checkpoint, or a :class:`CheckpointPolicy`. SIGTERM
            saves into it, and the streams keep what came since it was saved: ``Retention`` must
            have room for what comes from one save to the next.
    """

    def __init__(
        self,
        config: TrainerConfig,
        data_callback: DataCallback | None = None,
        request_callback: RequestCallback | None = None,
        log_level: int = logging.INFO,
        broker: str | BrokerURL | None = None,
        checkpoint: str | os.PathLike[str] | CheckpointPolicy | None = None,
    ) -> None:
        super().__init__("trainer", config, broker, log_level)
        self.config = copy_of(config)
        self._request_callback = request_callback
        self._stores = Stores(self._keys, data_callback)
        self._publisher: WeightsPublisher | None = None
        self._publisher_lock = threading.Lock()
        self._published_before = Version(0, 0)
        self._began_ms = 0
        self._switch = PauseSwitch(self._keys)
        self._commands = Commands(self._keys, self, self.telemetry)
        service = f"{self._keys.name} in namespace {self._keys.namespace!r}"
        networks = Networks(self._newest_version, self._publish_after)
        self._checkpoints = Checkpoints(
            service, checkpoint, self._stores, networks, self._check_lease
        )

    def register_data_store(
        self, name: str, data_store: Any, retention: Retention | None = None
    ) -> None:
        """Fill a store from the streams of this name; before or after ``start``.

        Args:
            name: as the actors call it.
            data_store: needs ``insert(transition)``; ``batch_insert(list)`` or
                ``insert_chunk(chunk)`` are used if it has them.
            retention: how much the broker keeps of its streams.
        """
        self._check_process()
        with self._life:
            self._stores.register(name, data_store, retention or Retention())
            if self._presence is not None:
                self._consume(name, self._connected())
                self._presence.info.update(self._offers())
                self._presence.beat()

    def data_store(self, name: str) -> Any:
        """Return the store of this name, None if there is none."""
        return self._stores.get(name)

    def store_names(self) -> set[str]:
        """Return the names of all registered stores."""
        return self._stores.names()

    def publish_network(self, payload: Any) -> int:
        """Publish a network to all actors, also those that come later.

        Returns after a copy was taken; it is encoded and sent in the background. If the next
        one comes before it was sent, it is superseded.

        Args:
            payload: a tree of arrays; numpy or JAX.

        Returns:
            The number of this version, counted from 1.

        Raises:
            EncodeError: a value in it may not travel.
            AlreadyServed: another trainer has taken over.
            Closed: after :meth:`stop`, before :meth:`start`.
        """
        broker = self._connected()
        with self._publisher_lock:
            if self._publisher is None:
                after, began_ms = self._published_before, self._began_ms
                self._publisher = WeightsPublisher(broker, self._keys, after, began_ms)
            publisher = self._publisher
        return publisher.publish(payload)

    @property
    def published_version(self) -> int:
        """Number of the newest published network, 0 before the first."""
        return self._newest_version().number

    def _newest_version(self) -> Version:
        """Return the version of the newest published network, this or a restored trainer's."""
        return self._publisher.version if self._publisher else self._published_before

    def _publish_after(self, version: Version) -> None:
        """Let all networks that are published from now on be newer than this version."""
        self._published_before = max(version, self._published_before)

    def _connected(self) -> Broker:
        broker = super()._connected()
        if not self._began_ms:  # all that this trainer will publish comes after
            self._began_ms = int(broker.now_ms() - broker.clock_error_ms) - 1
        return broker

    def _offers(self) -> dict[str, Any]:
        return {"stores": self._stores.offers(), "began_ms": self._began_ms}

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what != "request" or name not in self.config.request_types:
            raise UnknownRequest(
                f"unknown request type {name!r}; the config has {self.config.request_types}"
            )
        return {} if self._request_callback is None else self._request_callback(name, payload)

    def _start_workers(self, broker: Broker) -> None:
        self._checkpoints.start()
        for name in self._stores.names():
            self._consume(name, broker)

    def _consume(self, name: str, broker: Broker) -> None:
        assert self._presence is not None
        lease = Lease(self._keys.server, self._presence.info["token"])
        self._stores.consume(name, broker, lease, self._checkpoints.covers(name))

    # -- pauses ------------------------------------------------------------------------------------

    def pause_actors(self, timeout_s: float = 10.0) -> list[str]:
        """Ask all actors to stand still, and wait until the programs of all have seen it.

        What actors send is taken all the same. The pause also holds for actors that come later.
        It ends with :meth:`resume_actors`, :meth:`stop`, or five seconds (LEASE_MS) after this
        trainer has died.

        Args:
            timeout_s: seconds to wait at most.

        Returns:
            The ``actor_id`` of those that are there and have not seen it yet, sorted: their
            programs do not ask, or not often enough.

        Raises:
            BrokerUnreachable: the broker is away; the pause begins when it is back.
            Closed: the trainer is not running.
        """
        presence = self._presence
        if presence is None:
            raise Closed(f"{self._keys.name} is not running: pause actors after start()")
        return self._switch.pause(self._connected(), presence, timeout_s, lambda: self.is_running)

    def resume_actors(self) -> None:
        """End the pause; if there is none, nothing happens.

        Raises:
            BrokerUnreachable: the broker is away; the pause ends when it is back.
        """
        if self._presence is not None:
            self._switch.resume(self._connected(), self._presence)

    # -- checkpoints -------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        extra: Any = None,
        stores: Sequence[str] | None = None,
        wait: bool = True,
    ) -> bool:
        """Save stores, their positions in the streams, counters and the networks' version.

        The moment is fixed first: ``extra`` is encoded, and each store's insertions wait for
        microseconds (a store of the program's own: until its ``save_to`` returns). What came
        since the last save is then written; insertions wait for copies of 8 MiB at a time,
        samples for nothing.

        Args:
            path: of the folder; that of the constructor's ``checkpoint`` if None.
            extra: a tree to keep with it, such as the agent's state; each entry of a dict may
                have 512 MiB. None keeps that of the save before.
            stores: names of the stores to save; those of the policy, or all, if None.
            wait: whether to return when the checkpoint is on disk, or as soon as the moment is
                fixed; then a failure is logged.

        Returns:
            Whether it was saved (or begun). False, only if not to wait: one is being written.

        Raises:
            CheckpointError: no path; a store that cannot be saved; or the folder holds what
                another process has saved and this one has not restored.
            EncodeError: a value in ``extra`` may not be saved.
            AlreadyServed: another trainer has taken over.
            OSError: the disk is full, or the like; the checkpoint before is whole.
        """
        self._check_process()
        return self._checkpoints.save(path, extra, stores, wait)

    def _check_lease(self) -> None:
        """Raise AlreadyServed if another trainer has taken over, perhaps while this one slept."""
        presence = self._presence
        if presence is not None:
            with contextlib.suppress(AgentlaceError):  # a broker that is away tells of nobody
                presence.beat()
        if isinstance(self._ended, AlreadyServed):
            raise self._ended.with_traceback(None)

    def restore(
        self,
        path: str | os.PathLike[str] | None = None,
        stores: Sequence[str] | None = None,
        previous: bool = False,
    ) -> Any:
        """Fill the registered stores from a checkpoint; before ``start``.

        The streams are then read from exactly where it ends, and networks that are published
        are newer than all before.

        Args:
            path: of the folder, which must hold a checkpoint. If None that of the constructor's
                ``checkpoint``, which need not: the first start of a program.
            stores: names of the stores to restore; all that it holds if None.
            previous: whether to take the checkpoint before the newest one.

        Returns:
            The ``extra`` that was kept with it; None if there is none, or no checkpoint.

        Raises:
            CheckpointError: it is damaged, of another trainer, or does not fit the stores.
        """
        with self._life:
            if self.is_running:
                raise AgentlaceError("restore() after start(): call it before")
            return self._checkpoints.restore(path, stores, previous)

    def start(self, threaded: bool = False) -> None:
        """Start to serve, as every server; see :meth:`Server.start`.

        Raises:
            CheckpointError: a store cannot be saved into the constructor's ``checkpoint``, or
                that holds one which was not restored.
        """
        self._checkpoints.check()
        super().start(threaded)

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        yield from self._stores.measure()
        publisher = self._publisher
        yield Sample("network_version", self.published_version)
        if publisher is not None:
            yield Sample("networks_superseded_total", publisher.superseded)
            yield Sample("networks_sent_bytes_total", publisher.sent_bytes)

    # -- life --------------------------------------------------------------------------------------

    def _on_beat(self, channel: Channel) -> None:
        if self._publisher is not None:
            self._publisher.restore(channel)
        self._switch.tidy(channel)
        self._commands.look(channel)

    def stop(self) -> None:
        """Stop serving and say goodbye, also if it only published. Idempotent.

        In order: no more requests are taken, the running one is answered; the stores take what
        they are being given; a network that waits is sent; the presence key is removed; a
        checkpoint that is being written is finished, however long that takes.
        """
        if self._is_inherited:
            return
        super().stop()
        self._checkpoints.stop()
        self._commands.stop()

    def _stop_workers(self) -> None:
        self._stores.stop()
        with self._publisher_lock:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.stop()
            self._publish_after(publisher.version)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return per store how many transitions were applied, rejected, or found missing.

        A restored trainer counts on from where its checkpoint ends.
        """
        return self._stores.counters()
