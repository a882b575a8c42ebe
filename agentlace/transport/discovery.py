"""Which server to connect to where several are the broker: a cluster, or a master with replicas.

Only the map is wanted here: redis-py's own cluster client keeps connections to every node and
repeats commands by itself. A server that was found is asked whether it is the right one, since
the one that was asked for it may not have heard of a failover yet.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agentlace.config import BrokerURL, address_of
from agentlace.errors import AgentlaceError, BrokerAuthFailed, BrokerUnreachable
from agentlace.transport.link import Address, Link
from agentlace.transport.resp import Command, ErrorReply, Reply

SLOTS = 16384
MAP_S = 1.0
"""So long a map of the cluster is believed: many connections are opened at the same time."""
HOPS = 4
"""So often a connection follows from one node to the next."""
LEAST_ASK_S = 0.5
"""However many may have to be asked where the broker is, each has so long to answer."""

Connect = Callable[[Address, float], Link]
"""Called with an address and a timeout in seconds; raises only errors of ours."""
Mapped = Callable[[Exception], AgentlaceError]


def hash_tag(key: str) -> str:
    """Return the part of a key that says in which slot of a cluster it is."""
    tag, end, _ = key.partition("{")[2].partition("}")
    return tag if end and tag else key


def slot_of(key: str) -> int:
    """Return the number of a key's slot."""
    return crc_hqx(hash_tag(key).encode(), 0) % SLOTS


def key_in(slot: int) -> str:
    """Return a key that is in a slot."""
    return next(key for n in itertools.count() if slot_of(key := f"{{{n}}}") == slot)


def redirection(reply: Reply, asked: Address) -> Address | None:
    """Return the node that a refusal (``MOVED 3999 host:6381``, ``ASK …``) points to, if it does.

    Args:
        reply: of a node.
        asked: that node's address; a redirection may leave the host out.
    """
    if not isinstance(reply, ErrorReply) or reply.code not in ("MOVED", "ASK"):
        return None
    with contextlib.suppress(ValueError, IndexError):
        host, _, port = str(reply).split(" ")[2].rpartition(":")
        return _host(host, asked), int(port)
    return None


def _host(told: str, asked: Address) -> str:
    return asked[0] if told in ("", "?") else told.strip("[]")


class Sentinels:
    """Finds the master of a set of servers that sentinels watch."""

    def __init__(
        self, url: BrokerURL, connect: Connect, connect_sentinel: Connect, mapped: Mapped
    ) -> None:
        self._url = url
        self._connect = connect
        self._connect_sentinel = connect_sentinel
        self._mapped = mapped
        self._nodes = list(url.nodes)

    def open(self, key: str, timeout_s: float) -> Link:
        """Return a connection to the master; raises only errors of ours."""
        link = self._connect(self._master(timeout_s), timeout_s)
        (role,) = _asked(link, [("ROLE",)], timeout_s, self._mapped)
        if isinstance(role, list) and bytes(role[0]) != b"master":
            link.disconnect()
            reason = f"{address_of(*link.address)} is a replica: a failover is under way"
            raise BrokerUnreachable(str(self._url), reason)
        return link

    def _master(self, timeout_s: float) -> Address:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.master)
        failures: list[AgentlaceError] = []
        for node in list(self._nodes):
            try:
                link = self._connect_sentinel(node, _share(timeout_s, self._nodes))
                with contextlib.closing(link):
                    (told,) = _asked(link, [command], timeout_s, self._mapped)
                if isinstance(told, ErrorReply):
                    raise self._refused(told, node)
                if told is None:
                    what = f"the sentinel at {address_of(*node)} knows no {self._url.master!r}"
                    raise BrokerUnreachable(str(self._url), what)
            except AgentlaceError as error:
                failures.append(error)
                continue
            self._nodes.sort(key=lambda other: other != node)  # the next time it is asked first
            return _host(bytes(told[0]).decode(), node), int(told[1])
        raise _most_telling(failures)

    def _refused(self, reply: ErrorReply, node: Address) -> AgentlaceError:
        if "unknown command" not in str(reply):
            return self._mapped(reply)
        hint = "name its sentinels in the address, or use redis:// for a single server"
        return BrokerUnreachable(str(self._url), f"{address_of(*node)} is no sentinel", hint)


class SlotMap(NamedTuple):
    """Who had which slots, and when: first slot, last slot, master."""

    ranges: list[tuple[int, int, Address]]
    nodes: list[Address]
    taken_s: float

    def owner(self, slot: int) -> Address | None:
        """Return the node that has a slot."""
        return next((node for first, last, node in self.ranges if first <= slot <= last), None)


NO_MAP = SlotMap([], [], -MAP_S)


class Cluster:
    """Finds the node that has a key."""

    def __init__(self, url: BrokerURL, connect: Connect, mapped: Mapped) -> None:
        self._url = url
        self._connect = connect
        self._mapped = mapped
        self._lock = threading.Lock()
        self._map = NO_MAP

    def open(self, key: str, timeout_s: float) -> Link:
        """Return a connection to the node that has a key, or to any; raises only errors of ours."""
        told = None
        for _ in range(HOPS):
            address = told or self._owner(key, timeout_s)
            try:
                link = self._connect(address, timeout_s)
            except AgentlaceError:
                self.doubt()
                raise
            told = self._elsewhere(link, key, timeout_s) if key else None
            if told is None:
                return link
            link.disconnect()
            self.doubt()
        raise BrokerUnreachable(str(self._url), f"its nodes do not agree on who has {key!r}")

    def doubt(self) -> None:
        """Ask for a new map the next time."""
        self._map = self._map._replace(taken_s=-MAP_S)

    def _elsewhere(self, link: Link, key: str, timeout_s: float) -> Address | None:
        """Return the node that has a key if it is another one than this."""
        (reply,) = _asked(link, [("EXISTS", key)], timeout_s, self._mapped)
        if not isinstance(reply, ErrorReply) or reply.code == "ASK":
            return None
        if reply.code == "MOVED":
            return redirection(reply, link.address)
        error = self._mapped(reply)
        if isinstance(error, BrokerUnreachable):
            link.disconnect()
            self.doubt()
            raise error
        return None  # this user may not ask

    def _owner(self, key: str, timeout_s: float) -> Address:
        with self._lock:
            if time.monotonic() > self._map.taken_s + MAP_S:
                self._map = self._ask(timeout_s)
            known = self._map
        if not key:
            return known.nodes[0]
        owner = known.owner(slot_of(key))
        if owner is None:
            raise BrokerUnreachable(str(self._url), f"CLUSTERDOWN no node has slot {slot_of(key)}")
        return owner

    def _ask(self, timeout_s: float) -> SlotMap:
        """Return the map of the first node that sees the whole cluster, else of any node."""
        nodes = list(dict.fromkeys([*self._map.nodes, *self._url.nodes]))
        failures: list[AgentlaceError] = []
        found: SlotMap | None = None
        for node in nodes:
            try:
                seen, is_whole = self._seen_by(node, _share(timeout_s, nodes))
            except AgentlaceError as error:
                failures.append(error)
                continue
            found = seen if is_whole else found or seen
            if is_whole:
                break
        if found is None:
            raise _most_telling(failures)
        return found

    def _seen_by(self, node: Address, timeout_s: float) -> tuple[SlotMap, bool]:
        commands = [("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")]
        with contextlib.closing(self._connect(node, timeout_s)) as link:
            slots, info = _asked(link, commands, timeout_s, self._mapped)
        if isinstance(slots, ErrorReply):
            if "cluster support disabled" in str(slots):
                hint = "it is no cluster: use redis:// as its address"
                raise BrokerUnreachable(str(self._url), address_of(*node), hint)
            raise self._mapped(slots)
        ranges = [
            (int(first), int(last), _address(master, node)) for first, last, master, *_ in slots
        ]
        others = [_address(server, node) for _, _, *servers in slots for server in servers]
        is_whole = isinstance(info, ErrorReply) or b"cluster_state:ok" in bytes(info)
        return SlotMap(ranges, list(dict.fromkeys([node, *others])), time.monotonic()), is_whole


def _address(server: Reply, asked: Address) -> Address:
    host, port, *_ = server
    return _host(bytes(host or b"").decode(), asked), int(port)


def _share(timeout_s: float, nodes: Sequence[Address]) -> float:
    """Return how long one of several nodes may take: one that is dead must not cost all."""
    return max(timeout_s / len(nodes), LEAST_ASK_S)


def _asked(
    link: Link, commands: Sequence[Command], timeout_s: float, mapped: Mapped
) -> list[Reply]:
    try:
        return link.ask(commands, timeout_s)
    except Exception as error:
        link.disconnect()
        raise mapped(error) from error


def _most_telling(failures: list[AgentlaceError]) -> AgentlaceError:
    """Return the failure that says most: that of a wrong password, else the last one."""
    refusals = [error for error in failures if isinstance(error, BrokerAuthFailed)]
    return (refusals or failures)[-1]
