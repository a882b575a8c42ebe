"""Asking for many keys in a few round trips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agentlace.transport.connection import Channel
from agentlace.transport.resp import Reply

BATCH = 256
"""So many commands go in one write."""


def ask(channel: Channel, keys: Sequence[str], *command: str) -> list[Reply]:
    """Return the replies to a command for each key; refusals are among them.

    Args:
        channel: to the broker.
        keys: each is the last argument of one command.
        command: all that comes before it.
    """
    by_channel: dict[int, list[int]] = defaultdict(list)
    channels = {}
    for number, key in enumerate(keys):
        at = channel.at(key)  # of a cluster, one per hash tag
        channels[id(at)] = at
        by_channel[id(at)].append(number)
    replies: list[Reply] = [None] * len(keys)
    for which, numbers in by_channel.items():
        for begin in range(0, len(numbers), BATCH):
            batch = numbers[begin : begin + BATCH]
            commands = [(*command, keys[number]) for number in batch]
            for number, reply in zip(batch, channels[which].exchange(commands), strict=True):
                replies[number] = reply
    return replies
