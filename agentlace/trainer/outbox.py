"""One store's way from the actor into its stream."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from agentlace.data.data_store import Taken, take_after
from agentlace.errors import EncodeError
from agentlace.transport.connection import Channel
from agentlace.transport.producer import Producer

log = logging.getLogger(__name__)

SENT_MAX = 1024
"""Of so many sent batches it is remembered which row they ended with; then every other goes."""


class Outbox:
    """Takes new transitions from an actor's store and sends them. Its owner holds a lock.

    Attributes:
        lost: transitions that were overwritten in the store before they were taken.
    """

    def __init__(self, name: str, store: Any, producer: Producer) -> None:
        self.name = name
        self.store = store
        self.producer = producer
        self.lost = 0
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
        taken = take_after(self.store, self._position)
        if not taken.rows and not taken.lost:
            return
        permit()
        before = self.producer.number
        try:
            error = self._encode(taken, meta)
        except BaseException:  # a Ctrl-C: what was not noted as taken comes again
            if self._position != taken.last_id:
                self.producer.untake(before)
            raise
        self.producer.flush(deadline - time.monotonic())
        if error is not None:
            raise error

    def _encode(self, taken: Taken, meta: Mapping[str, Any]) -> EncodeError | None:
        """Hand what was taken to the producer; returns why some of it may not travel."""
        refused = None
        try:
            self.producer.take(taken.rows, meta)
        except EncodeError as error:
            refused = error
        self._position = taken.last_id
        self._remember(self.producer.number, taken.last_id)
        if taken.lost:
            self.lost += taken.lost
            log.warning(
                "store %r: %d transitions were overwritten before update() could send them (%d so "
                "far): call update() more often or give the store more capacity",
                self.name,
                taken.lost,
                self.lost,
            )
        return refused

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
        """Whether a consumer has applied everything that was sent."""
        return self.producer.applied(channel, role) >= self.producer.number
