"""One store's way from the actor into its stream."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from agentlace import codec
from agentlace.data.data_store import Taken, take_after
from agentlace.errors import AgentlaceError, EncodeError
from agentlace.logs import about
from agentlace.telemetry import Sample
from agentlace.transport.connection import Channel
from agentlace.transport.producer import Producer

log = logging.getLogger(__name__)

SENT_MAX = 1024
"""Of so many sent batches it is remembered which row they ended with; then every other goes."""


class Outbox:
    """Takes new transitions from an actor's store and sends them. Its owner holds a lock.

    What is taken and cannot be sent is bounded by the store's capacity, if it tells one: the
    oldest then gives way, and is counted as lost.

    Args:
        name: of the store.
        store: where the transitions are.
        producer: of their stream.
        holds: whether an episode that was begun is sent only once it has ended.

    Attributes:
        lost: transitions that were overwritten in the store before they were taken, or gave way.
        episodes: number of the newest episode that was begun or ended, 0 before the first.
        begun_at: number after which the running episode was begun; None if none was begun.
    """

    def __init__(self, name: str, store: Any, producer: Producer, holds: bool = False) -> None:
        self.name = name
        self.store = store
        self.producer = producer
        self.holds = holds
        self.lost = 0
        self.episodes = 0
        self.begun_at: int | None = None
        self._position: Any = -1
        self._applied_id: Any = -1
        self._sent: deque[tuple[int, Any]] = deque()

    def send(self, timeout_s: float, meta: Mapping[str, Any], permit: Callable[[], None]) -> None:
        """Send what is pending, then what is new; returns when the broker has it.

        Args:
            timeout_s: for both together.
            meta: travels with each chunk.
            permit: called before anything new is taken; raises to forbid it.

        Raises:
            BrokerUnreachable, StoreFull, ActorReplaced: see :meth:`Producer.flush`.
            EncodeError: a transition may not travel and was left out; all others were sent.
        """
        deadline = time.monotonic() + timeout_s
        self.producer.flush(timeout_s)
        refused = self._take_new(meta, permit)
        self.producer.flush(deadline - time.monotonic())
        if refused is not None:
            raise refused

    def _take_new(
        self, meta: Mapping[str, Any], permit: Callable[[], None] | None = None
    ) -> EncodeError | None:
        """Hand what is new to the producer; returns why some of it may not travel."""
        taken = take_after(self.store, self._position)
        if not taken.rows and not taken.lost:
            return None
        if permit is not None:
            permit()
        before = self.producer.number
        try:
            refused = self._encode(taken, meta)
        except BaseException:  # a Ctrl-C: what was not noted as taken comes again
            if self._position != taken.last_id:
                self.producer.pending.untake(before)
            raise
        if self.producer.pending.hold_from is not None:
            self.producer.pending.own(before)  # update() returns, and arrays change
            self._bound()
        return refused

    # -- episodes ----------------------------------------------------------------------------------

    def begin(self, mark: codec.Mark, meta: Mapping[str, Any]) -> EncodeError | None:
        """Put the beginning of an episode behind what was inserted so far, unsent.

        Args:
            mark: the beginning; it gets the episode's number.
            meta: travels with each chunk.

        Returns:
            Why some of the transitions before it may not travel.

        Raises:
            EncodeError: the mark may not travel; nothing was taken.
        """
        mark = replace(mark, episode=self.episodes + 1)
        refused, self.begun_at = self._mark(mark, meta), self.producer.number - 1
        self.episodes += 1
        if self.holds:
            self.producer.pending.hold_from = self.producer.number
        return refused

    def end(self, mark: codec.Mark, meta: Mapping[str, Any]) -> EncodeError | None:
        """Put the end of an episode behind what was inserted so far, as :meth:`begin` does."""
        number = self.episodes + (self.begun_at is None)
        refused = self._mark(replace(mark, episode=number), meta)
        self.episodes, self.begun_at = number, None
        self.producer.pending.hold_from = None
        return refused

    def discard(self, mark: codec.Mark, meta: Mapping[str, Any]) -> EncodeError | None:
        """Drop what is unsent of the running episode, and put a mark behind what was sent.

        Raises:
            AgentlaceError: no episode was begun.
        """
        if self.begun_at is None:
            raise AgentlaceError(f"store {self.name!r} has no episode to discard: begin one first")
        refused = self._take_new(meta)
        is_gone = self.producer.pending.discard_after(self.begun_at)
        while self._sent and self._sent[-1][0] > self.producer.number:
            self._sent.pop()
        if is_gone:
            self.episodes -= 1
        else:
            frame = codec.encode_mark(replace(mark, episode=self.episodes))
            self.producer.pending.take_mark(frame)
        self.begun_at = self.producer.pending.hold_from = None
        return refused

    def _mark(self, mark: codec.Mark, meta: Mapping[str, Any]) -> EncodeError | None:
        frame = codec.encode_mark(mark)
        refused = self._take_new(meta)
        self.producer.pending.take_mark(frame)
        self._bound()
        return refused

    def _bound(self) -> None:
        """Let the oldest of what waits give way, once it is more than the store would keep."""
        capacity = getattr(self.store, "capacity", None)
        if isinstance(capacity, int):
            dropped = self.producer.pending.drop_oldest(max(capacity, 1))
            self._note_lost(dropped, "gave way to newer ones while they waited to be sent")

    def measure(self, labels: dict[str, str]) -> Iterator[Sample]:
        """Yield how many transitions went which way, and how many wait."""
        waiting = self.producer.pending.rows
        yield Sample("transitions_sent_total", self.producer.number - waiting, labels)
        yield Sample("transitions_sent_bytes_total", self.producer.sent_bytes, labels)
        yield Sample("transitions_pending", waiting, labels)
        yield Sample("transitions_lost_total", self.lost, labels)
        yield Sample("transitions_dropped_total", self.producer.dropped, labels)

    # -- taking ------------------------------------------------------------------------------------

    def _encode(self, taken: Taken, meta: Mapping[str, Any]) -> EncodeError | None:
        """Hand what was taken to the producer; returns why some of it may not travel."""
        refused = None
        try:
            self.producer.take(taken.rows, meta)
        except EncodeError as error:
            refused = error
        self._position = taken.last_id
        self._remember(self.producer.number, taken.last_id)
        self._note_lost(taken.lost, "were overwritten before update() could send them")
        return refused

    def _note_lost(self, count: int, how: str) -> None:
        if count:
            self.lost += count
            log.warning(
                "store %r: %d transitions %s (%d so far): call update() more often or give the "
                "store more capacity",
                self.name,
                count,
                how,
                self.lost,
                extra=about(store=self.name),
            )

    def _remember(self, number: int, row_id: Any) -> None:
        self._sent.append((number, row_id))
        if len(self._sent) > SENT_MAX:
            newest = self._sent.pop()
            self._sent = deque([*list(self._sent)[::2], newest])

    def skip_to(self, row_id: Any) -> None:
        """Leave out rows up to an ID, if it is known to come after what was taken."""
        if isinstance(row_id, int) and isinstance(self._position, int):
            self._position = max(self._position, row_id)

    def applied_id(self, channel: Channel, role: str) -> Any:
        """Return the ID of this client's last row that a consumer has applied, -1 before any."""
        number = self.producer.applied(channel, role)
        while self._sent and self._sent[0][0] <= number:
            self._applied_id = self._sent.popleft()[1]
        return self._applied_id

    def is_applied(self, channel: Channel, role: str) -> bool:
        """Whether a consumer has applied everything that was taken and is not held back."""
        held = self.producer.pending.hold_from
        wanted = self.producer.number if held is None else held - 1
        return self.producer.applied(channel, role) >= wanted
