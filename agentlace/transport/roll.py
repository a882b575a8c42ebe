"""The roll of a trainer's actors: who is there, and which pause each of them has seen."""

from __future__ import annotations

from agentlace.transport.connection import Channel
from agentlace.transport.keys import ServiceKeys


class Roll:
    """The roll of one trainer.

    Args:
        keys: the trainer's.
    """

    def __init__(self, keys: ServiceKeys) -> None:
        self._keys = keys

    def sign(self, channel: Channel, name: str, seen: str) -> None:
        """Say that an actor is there, and which pause its program has seen last.

        Called at each heartbeat, so that a broker that came back empty knows it again.
        """
        channel.call("HSET", self._keys.roll, name, seen)

    def present(self, channel: Channel) -> dict[str, str]:
        """Return who is there with the pause each has seen; strike off who is gone."""
        fields = channel.call("HGETALL", self._keys.roll)
        names = [bytes(name).decode(errors="replace") for name in fields[::2]]
        seen = [bytes(value).decode(errors="replace") for value in fields[1::2]]
        if not names:
            return {}
        replies = channel.exchange([("EXISTS", self._keys.client(name)) for name in names])
        found = zip(names, seen, channel.checked(replies), strict=True)
        there = {name: value for name, value, is_there in found if is_there}
        gone = [name for name in names if name not in there]
        if gone:
            channel.call("HDEL", self._keys.roll, *gone)
        return there
