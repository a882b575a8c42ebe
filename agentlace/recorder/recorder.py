"""The recorder service."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agentlace._version import __version__
from agentlace.config import BadSetting, BrokerURL
from agentlace.errors import AgentlaceError, AlreadyServed
from agentlace.forks import check_process, process_number
from agentlace.recorder.attendance import Attendance
from agentlace.recorder.report import Report, Status
from agentlace.recorder.scribe import Scribe
from agentlace.recorder.settings import Settings
from agentlace.recorder.sink import Sink
from agentlace.rlds.writer import DatasetWriter
from agentlace.service.measured import Measured
from agentlace.service.running import started, stopped
from agentlace.telemetry import Sample, Telemetry
from agentlace.transport import presence
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.identity import describe
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import forget as forget_consumer
from agentlace.transport.streams import StreamId
from agentlace.waits import Wait

ROLE = "recorder"
TICK_S = 0.1
"""How often a recorder looks whether something is to be done."""


class Recorder(Measured):
    """Follows the streams of one or more stores, and writes their episodes as one RLDS dataset.

    Each transition is in the dataset exactly once: an episode and the position behind it become
    part of the dataset in one commit, and until then the streams hold it. So a recorder may be
    killed at any moment and started anew. Neither actors nor trainer need to know of it, and the
    trainer need not be there.

    Args:
        stores: names of the stores, as their actors call them.
        data_dir: folder of datasets; ``<data_dir>/<name>/<version>/`` is written. Episodes that do
            not fit go to ``<data_dir>/<name>/quarantine-<version>/``.
        name: of the dataset.
        port_number: of the trainer, as in its config.
        broker: address; else AGENTLACE_BROKER, else this machine's.
        settings: how it works.
    """

    def __init__(
        self,
        stores: Iterable[str],
        data_dir: str | os.PathLike[str],
        name: str,
        *,
        port_number: int = 5555,
        broker: str | BrokerURL | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.stores = list(dict.fromkeys(stores))
        if not self.stores:
            raise BadSetting("stores", "", "name at least one store")
        self.settings = settings or Settings()
        self.consumer_name = f"{ROLE}:{name}"
        self._dataset = (data_dir, name, self.settings.version)
        self._broker = Broker(BrokerURL.resolve(broker))
        self._keys = ServiceKeys(self._broker.url.namespace, "trainer", port_number)
        self._stop = threading.Event()
        self._made_in = process_number()
        self._presence: presence.Presence | None = None
        self._writer: DatasetWriter | None = None
        self._scribe: Scribe | None = None
        self._attendance: Attendance | None = None
        self._consumers: dict[str, Consumer] = {}
        self._report: Report | None = None
        self.telemetry = Telemetry("recorder", self._keys.name, self.consumer_name)
        self.telemetry.collect(self._measure)
        self.telemetry.explain(self._waits)
        self._began_s = time.monotonic()

    @property
    def directory(self) -> Path:
        """Folder of the dataset."""
        data_dir, name, version = self._dataset
        return Path(data_dir).expanduser() / name / version

    @property
    def quarantine(self) -> Path:
        """Folder of the episodes that do not fit; there if there are any."""
        return self.directory.parent / f"quarantine-{self.settings.version}"

    def start(self) -> None:
        """Open the dataset and begin to read, in threads of its own.

        Raises:
            BrokerUnreachable: no broker within five seconds; it is never started from here.
            BrokerAuthFailed: the broker refuses the user or password.
            AlreadyServed: another recorder writes this dataset, or one of this name elsewhere.
            DecodeError, SchemaMismatch, MissingExtra, BadSetting: see :class:`DatasetWriter`.
        """
        check_process(self._made_in, "this recorder")
        if self._scribe is not None:
            raise AgentlaceError("this recorder was started already: make another one")
        try:
            self._open()
        except BaseException:
            self.stop()
            raise
        started(self)

    def _open(self) -> None:
        data_dir, name, version = self._dataset
        self._broker.now_ms()  # raises if there is none
        self._writer = DatasetWriter(
            data_dir, name, version, image_format=self.settings.image_format
        )
        sink = Sink(self._writer, self.quarantine)
        stores = [self._keys.store(store) for store in self.stores]
        self._scribe = scribe = Scribe(sink, stores, self._publish, self.settings.open_max_bytes)
        self._report = Report(scribe)
        self._announce()
        self._attendance = Attendance(self._broker, self._keys, scribe, self.settings)
        for store in self.stores:
            self._consumers[store] = self._consumer(scribe, store)
        for consumer in self._consumers.values():
            consumer.start()
        self._attendance.warn_of_unknown_stores()

    def _announce(self) -> None:
        """Take this recorder's name; two of one name would move each other's cursors."""
        info = describe(
            *(ROLE, self.consumer_name),
            version=__version__,
            config={"stores": self.stores, "directory": str(self.directory)},
            exclusive=True,
        )
        key = self._keys.client(self.consumer_name)
        self._presence = presence.Presence(
            self._broker, key, info, on_replaced=self._fail, telemetry=self.telemetry
        )
        self._presence.acquire(exclusive=True)
        self._presence.start()

    def _consumer(self, scribe: Scribe, store: str) -> Consumer:
        positions = scribe.committed(store)
        return Consumer(
            *(self._broker, self._keys, store),
            lambda actor, chunk, last: scribe.add(store, actor, chunk, last),
            *(self.consumer_name, dict(positions)),
            on_mark=lambda actor, mark, at: scribe.mark(store, actor, mark, at),
            committed=dict(positions),
        )

    def _publish(self, store: str, positions: dict[str, StreamId]) -> None:
        if store in self._consumers:
            self._consumers[store].commit(positions)

    def _fail(self, error: AlreadyServed) -> None:
        assert self._scribe is not None
        self._scribe.failure = self._scribe.failure or error

    # -- working -------------------------------------------------------------------------------

    def run(self, once: bool = False, on_tick: Callable[[], object] | None = None) -> None:
        """Record until :meth:`interrupt`, or a failure; call :meth:`stop` afterwards.

        Args:
            once: return when all is read that is in the streams now.
            on_tick: called several times a second, to show how things stand.

        Raises:
            StoreFull: the disk is full; what is not committed is still in the streams.
            AlreadyServed: another recorder of this name has taken over.
            OSError: the dataset's folder is gone, and the like.
        """
        scribe, attendance = self._started()
        ahead = attendance.ahead() if once else None
        while not self._stop.wait(TICK_S):
            attendance.check()
            self._commit(scribe)
            if on_tick is not None:
                on_tick()
            if ahead is not None and attendance.has_passed(ahead):
                attendance.check(now=True)
                return

    def _commit(self, scribe: Scribe) -> None:
        """Commit if it is time to, and raise what forbids to go on."""
        is_time = time.monotonic() - scribe.committed_s > self.settings.commit_every_s
        if is_time or scribe.failure is not None:
            scribe.commit()

    def _started(self) -> tuple[Scribe, Attendance]:
        check_process(self._made_in, "this recorder")
        if self._scribe is None or self._attendance is None:
            raise AgentlaceError("this recorder was not started")
        return self._scribe, self._attendance

    def interrupt(self) -> None:
        """Let :meth:`run` return; may be called from a signal handler."""
        self._stop.set()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was interrupted or stopped."""
        return self._stop.is_set()

    def status(self) -> Status:
        """Return how things stand."""
        scribe, attendance = self._started()
        assert self._report is not None
        return self._report.status(scribe, attendance)

    def _measure(self) -> Iterator[Sample]:
        for store, consumer in list(self._consumers.items()):
            yield Sample("transitions_applied_total", consumer.applied, {"store": store})
            yield Sample("transitions_rejected_total", consumer.rejected, {"store": store})
            yield Sample("transitions_missing_total", consumer.gaps, {"store": store})
        if self._writer is not None:
            yield Sample("episodes_recorded", self._writer.episodes)

    def _waits(self) -> Iterator[Wait]:
        attendance = self._attendance
        for store, actors in list(attendance.seen.items()) if attendance is not None else []:
            if not actors:
                yield Wait(f"an actor of store {store!r}", self._began_s)

    # -- ending --------------------------------------------------------------------------------

    def stop(self, forget: bool = False) -> None:
        """Commit what is finished, and say goodbye. Idempotent.

        Open episodes are not ended: their transitions stay in the streams, which are kept for
        this recorder until it comes back and reads them again.

        Args:
            forget: give up this recorder's place: the streams are no longer kept for it.

        Raises:
            StoreFull: the disk is full; what was not committed is still in the streams.
        """
        self._stop.set()
        if self._made_in != process_number():
            return
        stopped(self)
        with contextlib.ExitStack() as steps:  # the last one first
            if self._writer is not None:
                steps.callback(self._writer.close)
            if self._attendance is not None:
                steps.callback(self._attendance.close)
            if self._presence is not None:
                steps.callback(self._presence.stop)
            if forget and self._consumers:
                steps.callback(self._forget)
            for consumer in self._consumers.values():
                steps.callback(consumer.stop)
            if self._scribe is not None:
                steps.callback(self._scribe.close)

    def _forget(self) -> None:
        with contextlib.closing(self._broker.channel()) as channel:
            for store in self.stores:
                keys = self._keys.store(store)
                forget_consumer(channel.at(keys.prefix), keys, self.consumer_name)

    def __enter__(self) -> Recorder:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
