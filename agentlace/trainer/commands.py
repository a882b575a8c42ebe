"""What a trainer does when an operator commands it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any, Protocol

from agentlace.errors import AgentlaceError, BrokerAuthFailed, DecodeError
from agentlace.logs import about
from agentlace.telemetry import Telemetry
from agentlace.transport.commands import PAUSE, RESUME, SAVE, Command, answer, next_command
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import ServiceKeys

log = logging.getLogger(__name__)

RUNNING_MAX = 3
"""So many commands run at the same time, so that a long save holds no resume back."""
PAUSE_TIMEOUT_S = 5.0
"""So long a pause waits until the actors have seen it."""
JOIN_TIMEOUT_S = 5.0


class Commanded(Protocol):
    """What commands need of a trainer."""

    def pause_actors(self, timeout_s: float = ...) -> list[str]:
        """Pause; return who has not seen it."""

    def resume_actors(self) -> None:
        """End the pause."""

    def save(self) -> bool:
        """Save into the trainer's checkpoint."""


class Commands:
    """A trainer's end of its commands: each is carried out in a thread of its own.

    Args:
        keys: the trainer's.
        trainer: the trainer.
        telemetry: notes who commanded what.
    """

    def __init__(self, keys: ServiceKeys, trainer: Commanded, telemetry: Telemetry) -> None:
        self._keys = keys
        self._trainer = trainer
        self._telemetry = telemetry
        self._threads: list[threading.Thread] = []
        self._is_forbidden = False

    def look(self, channel: Channel) -> None:
        """Take the commands that there are; called at each heartbeat, does not wait."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while not self._is_forbidden and len(self._threads) < RUNNING_MAX:
            try:
                command = next_command(channel, self._keys)
            except DecodeError as error:
                log.warning("%s: %s", self._keys.name, error, extra=self._about(error))
                continue
            except BrokerAuthFailed as error:  # users of an earlier version know no commands
                self._is_forbidden = error.is_forbidden
                log.info("%s takes no commands: %s", self._keys.name, error)
                return
            if command is None:
                return
            thread = threading.Thread(
                target=self._run, args=(channel.broker, command), name="command", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _run(self, broker: Broker, command: Command) -> None:
        try:
            text, failure = self._carried_out(broker, command), ""
        except Exception as error:
            text, failure = str(error), type(error).__name__
        note = f"{command.what}, as {command.by} wants: {text}"
        self._telemetry.note("command", note)
        log.info("%s: %s", self._keys.name, note)
        with contextlib.closing(broker.channel(key=self._keys.prefix)) as channel:
            try:
                answer(channel, self._keys, command, text, failure)
            except AgentlaceError as error:
                text = "%s could not answer a command: %s"
                log.warning(text, self._keys.name, error, extra=self._about(error))

    def _about(self, error: AgentlaceError) -> dict[str, Any]:
        return about(self._keys.labels, error=error)

    def _carried_out(self, broker: Broker, command: Command) -> str:
        """Do it; return what was done, for people."""
        late_s = (broker.now_ms() - command.deadline_ms) / 1000
        if late_s > 0:
            raise AgentlaceError(f"it came {late_s:.1f} s after its deadline")
        if command.what == PAUSE:
            late = self._trainer.pause_actors(PAUSE_TIMEOUT_S)
            return f"paused; not seen yet by {', '.join(late)}" if late else "all actors paused"
        if command.what == RESUME:
            self._trainer.resume_actors()
            return "resumed"
        if command.what == SAVE:
            began = time.monotonic()
            self._trainer.save()
            return f"checkpoint saved in {time.monotonic() - began:.1f} s"
        raise AgentlaceError(f"this trainer knows no command {command.what!r}")

    def stop(self) -> None:
        """Wait for what is being carried out, for a few seconds (JOIN_TIMEOUT_S)."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0))
