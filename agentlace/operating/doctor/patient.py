"""What the checks look at: an address, and what was learned there so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property

from agentlace.config import BrokerURL, address_of
from agentlace.operating.brokers import broker_info
from agentlace.operating.snapshot import Snapshot, take
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.link import Address
from agentlace.transport.resp import ErrorReply

TIMEOUT_S = 3.0
"""How long an attempt to connect, or an answer, may take."""


class Patient:
    """An address, and what was learned there so far. For one thread.

    Args:
        url: the address.
        role: whose job the user is to be able to do; empty for the one that it is named after.
        services: to look for by name where the user may not list them, such as ``trainer:5555``.
        now_s: this machine's clock, in seconds since the epoch.

    Attributes:
        accepting: hosts and ports that accept connections, set by the check of the port.
        greetings: what servers say to a PING in the clear, as far as they were asked.
        denial: why writes are refused, whoever asks; set by the check of the rights.
        has_written: whether this user may write anything; likewise.
    """

    def __init__(
        self,
        url: BrokerURL,
        role: str = "",
        services: Sequence[str] = (),
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self.role = role
        self.services = services
        self.now_s = now_s
        self.accepting: list[Address] = []
        self.greetings: dict[Address, bytes | None] = {}
        self.denial: ErrorReply | None = None
        self.has_written = False

    @property
    def servers(self) -> list[Address]:
        """Return the hosts and ports that the address names."""
        return list(self.url.nodes) or [(self.url.host, self.url.port)]

    @property
    def is_networked(self) -> bool:
        """Whether the broker is reached over a network, if only this machine's own."""
        return self.url.scheme not in ("unix", "memory")

    @property
    def is_here(self) -> bool:
        """Whether nobody but this machine's own users reaches that address."""
        hosts = {host for host, _ in self.servers}
        return not self.is_networked or hosts <= {"localhost", "127.0.0.1", "::1"}

    @cached_property
    def channel(self) -> Channel:
        """Return a channel to the broker; it connects when it is first used."""
        return Broker(self.url).channel(TIMEOUT_S)

    @cached_property
    def infos(self) -> list[tuple[str, Channel, dict[str, str]]]:
        """Return what each server says of itself, and what it is called if there are several.

        Nothing is said where this user may not ask.
        """
        if not self.url.is_cluster:
            return [("", self.channel, broker_info(self.channel))]
        found = []
        for channel in self.channel.everywhere():
            told = broker_info(channel)
            found.append((f"{address_of(*channel.server or ('?', 0))}: ", channel, told))
        return found

    @cached_property
    def user(self) -> str:
        """Return the user's name, as the broker says, or else as it was given."""
        (told,) = self.channel.exchange([("ACL", "WHOAMI")])
        if isinstance(told, ErrorReply) or told is None:
            return self.url.username or "default"
        return bytes(told).decode(errors="replace")

    @cached_property
    def snapshot(self) -> Snapshot:
        """Return how the system stands; raises as :func:`agentlace.operating.take`."""
        return take(self.channel, self.url.namespace)

    def settings(self, channel: Channel, name: str) -> str | None:
        """Return a setting of a server; None if this user may not ask."""
        (told,) = channel.exchange([("CONFIG", "GET", name)])
        if isinstance(told, ErrorReply) or not told or len(told) < 2:
            return None
        return bytes(told[1]).decode(errors="replace")

    def to_set(self, name: str, value: str) -> str:
        """Return the command that changes a setting of the broker, now and for good."""
        url = self.url
        if url.scheme == "unix":
            at = f"-s {url.path}"
        elif url.has_sentinels:
            at = "-h HOST -p PORT"
        else:
            at = f"-h {url.host} -p {url.port}"
        more = " --tls --cacert ca.crt" if url.has_tls else ""
        more += " --user admin --askpass" if url.username else " --askpass" if url.password else ""
        quoted = f"'{value}'" if " " in value else value
        return (
            f"redis-cli {at}{more} CONFIG SET {name} {quoted}  (and `{name} {value}` in its "
            "redis.conf)"
        )

    def close(self) -> None:
        """Close the connection."""
        if "channel" in self.__dict__:
            with contextlib.suppress(OSError):
                self.channel.close()
