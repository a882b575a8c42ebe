"""A client whose trainer may pause it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentlace.errors import AgentlaceError, BrokerUnreachable
from agentlace.service import Client
from agentlace.trainer.pause import PauseWatch
from agentlace.trainer.pause_state import Pausable, PauseState
from agentlace.transport.connection import Channel
from agentlace.waits import Wait


class PausableClient(Pausable, Client):
    """A client of a trainer that can be asked whether there is a pause.

    Arguments as for :class:`Client`; the last one, the name, is what the trainer calls it.
    """

    _takes_part = False
    """Whether the trainer waits for it: not for a client that only looks on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._watch = PauseWatch(self._broker, self._keys, args[-1], lambda: self._server)

    def _pause_state(self) -> PauseState:
        self._check_usable()
        return self._watch.start()

    def _waits(self) -> Iterator[Wait]:
        yield from super()._waits()
        state = self._watch.state
        if state.pause and state.seen == state.pause:
            yield Wait(f"the end of the pause of {self._keys.name}", state.since_s)

    def _look_for_server(self, channel: Channel) -> AgentlaceError | None:
        error = super()._look_for_server(channel)
        if error is None and self._takes_part:
            try:
                self._watch.sign(channel)
            except BrokerUnreachable as lost:
                return lost
        return error

    def _on_beat(self, channel: Channel) -> None:
        super()._on_beat(channel)
        if self._takes_part:
            self._watch.sign(channel)

    def stop(self) -> None:
        """Stop and say goodbye. Idempotent; a call that is waiting ends with Closed."""
        if self._is_inherited:
            return
        self._watch.stop()
        super().stop()
