"""Commands to a trainer from whoever operates the system: pause, resume, save.

They have a list of their own. Every actor may write the list of requests; this one only those
may write whom the broker lets (the roles ``operator`` and ``admin``). A trainer looks at each
heartbeat. A command has a deadline and gets one answer: what was done, or why it was not.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from agentlace.errors import DecodeError, RemoteError, RequestTimeout
from agentlace.transport.connection import Channel
from agentlace.transport.keys import COMMANDS_MS, ServiceKeys
from agentlace.transport.presence import absent, read_peer

PAUSE, RESUME, SAVE = "pause", "resume", "save"
KINDS = (PAUSE, RESUME, SAVE)
SLICE_S = 1.0
MARGIN_S = 2.0
TEXT_CHARS = 500


@dataclass(frozen=True)
class Command:
    """What a trainer is to do.

    Attributes:
        id: tells it from all others; names the list of its answer.
        what: one of KINDS.
        by: who wants it, for the trainer's log.
        deadline_ms: in the broker's time; it is not begun after.
    """

    id: str
    what: str
    by: str
    deadline_ms: float


def order(channel: Channel, keys: ServiceKeys, what: str, by: str, timeout_s: float) -> str:
    """Have a trainer do something, and wait until it has.

    Args:
        channel: to the broker, as a user that may command, such as ``operator``.
        keys: the trainer's.
        what: one of KINDS.
        by: who wants it.
        timeout_s: seconds to wait at most; a command that was not begun then never is.

    Returns:
        What was done, for people.

    Raises:
        ValueError: there is no such command.
        PeerAbsent: no trainer is there.
        RemoteError: the trainer has not done it; the message says why.
        RequestTimeout: no answer in time; ``started`` tells whether the trainer took it.
        BrokerUnreachable: the broker is away; the command may be executed.
        BrokerAuthFailed: this user may not command trainers.
    """
    if what not in KINDS:
        raise ValueError(f"no command {what!r}: use one of {', '.join(KINDS)}")
    if read_peer(channel, keys.server) is None:
        raise absent(channel, keys)
    deadline_ms = channel.broker.now_ms() + 1000 * timeout_s
    command = Command(uuid.uuid4().hex, what, by[:TEXT_CHARS], deadline_ms)
    message = json.dumps(asdict(command)).encode()
    push: list[Any] = [
        ("RPUSH", keys.commands, message),
        ("PEXPIRE", keys.commands, COMMANDS_MS),
    ]
    channel.checked(channel.exchange(push))
    answer = _awaited(channel, keys.answer(command.id), time.monotonic() + timeout_s)
    if answer is None:
        is_withdrawn = channel.call("LREM", keys.commands, 1, message)
        raise RequestTimeout(f"{what} at {keys.name}", timeout_s, started=not is_withdrawn)
    if not answer["done"]:
        raise RemoteError(str(answer["type"]), str(answer["text"]))
    return str(answer["text"])


def _awaited(channel: Channel, key: str, deadline_s: float) -> dict[str, Any] | None:
    while (left_s := deadline_s - time.monotonic()) > 0:
        slice_s = min(left_s, SLICE_S)
        pop = ("BLPOP", key, f"{max(slice_s, 0.01):.3f}")
        popped = channel.call(*pop, timeout_s=slice_s + MARGIN_S)
        if popped is not None:
            return dict(json.loads(bytes(popped[1])))
    return None


def next_command(channel: Channel, keys: ServiceKeys) -> Command | None:
    """Return the next command and take it off the list; None if there is none. Does not wait.

    Raises:
        DecodeError: it cannot be read; it is off the list all the same.
        BrokerUnreachable, BrokerAuthFailed: as it says.
    """
    popped = channel.call("LPOP", keys.commands)
    if popped is None:
        return None
    try:
        told = json.loads(bytes(popped))
        deadline_ms = float(told["deadline_ms"])
        return Command(str(told["id"]), str(told["what"]), str(told["by"]), deadline_ms)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:TEXT_CHARS]
        raise DecodeError(f"a command that cannot be read: {reason}") from error


def answer(
    channel: Channel, keys: ServiceKeys, command: Command, text: str, failure: str = ""
) -> None:
    """Tell whoever gave a command what became of it.

    Args:
        channel: to the broker.
        keys: the trainer's.
        command: the command.
        text: what was done, or why it was not.
        failure: type of the error; empty if it was done.
    """
    told = {"done": not failure, "type": failure, "text": text[:TEXT_CHARS]}
    key, message = keys.answer(command.id), json.dumps(told).encode()
    push: list[Any] = [("RPUSH", key, message), ("PEXPIRE", key, COMMANDS_MS)]
    channel.checked(channel.exchange(push))
