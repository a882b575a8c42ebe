"""The nodes: who is there, what each waits for, whether they fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from agentlace._version import __version__
from agentlace.config import check_same
from agentlace.errors import BrokerAuthFailed, ConfigMismatch
from agentlace.operating.doctor.findings import Finding, fail, info, of_error, ok, skip, warn
from agentlace.operating.doctor.patient import Patient
from agentlace.operating.peers import Peer
from agentlace.operating.peers import peers as read_peers
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import namespaces
from agentlace.wording import duration

IDLE_S = 30.0
"""A node that waits and has done nothing for longer is worth a warning."""


def peers(patient: Patient) -> Iterator[Finding]:
    """Look who is there, and whether each still beats."""
    try:
        snapshot = patient.snapshot
    except BrokerAuthFailed as error:
        yield from _named(patient, error)
        return
    there = [peer for peer in snapshot.peers if peer.is_there]
    if not there:
        yield _nobody(patient)
    for peer in snapshot.peers:
        if not peer.is_there:
            yield _gone(peer, snapshot.clients(peer.service))
        elif peer.is_late:
            yield _late(peer)
        elif peer.waits and (peer.idle_s or 0) > IDLE_S:
            yield warn(
                f"{_who(peer)} has done nothing for {duration(peer.idle_s)}: it waits for "
                f"{'; '.join(peer.waits)}",
                "start what it waits for: agentlace status says who is there",
            )
        else:
            yield ok(_progress(peer))
    yield from _unserved(patient, there)


def _named(patient: Patient, error: BrokerAuthFailed) -> Iterator[Finding]:
    """Look for the services that were named: their keys may be read where no list may be had."""
    if not error.is_forbidden:
        raise error
    yield of_error(error)
    for service in patient.services:
        kind, _, port = service.partition(":")
        keys = ServiceKeys(patient.url.namespace, kind, int(port))
        server = next(iter(read_peers(patient.channel, keys.namespace, [keys.server])), None)
        last = next(iter(read_peers(patient.channel, keys.namespace, [keys.seen])), None)
        if server is not None:
            yield _late(server) if server.is_late else ok(_progress(server))
        elif last is not None:
            yield fail(_last_seen(last), f"start it again; `ps -p {last.pid}` on {last.host}")
        else:
            yield fail(f"nobody serves {service}, nor did within the last days", "start it")


def _nobody(patient: Patient) -> Finding:
    namespace = patient.url.namespace
    others = [other for other in namespaces(patient.channel) if other != namespace]
    if others:
        shown = ", ".join(map(repr, others[:5]))
        todo = (
            f"agentlace doctor --namespace {others[0]}, or export AGENTLACE_NAMESPACE={others[0]}"
        )
        return warn(f"nobody is in namespace {namespace!r}, but there is in {shown}", todo)
    return info(f"nobody is there in namespace {namespace!r}")


def _late(peer: Peer) -> Finding:
    return fail(
        f"{_who(peer)} has given no sign of life for {duration(peer.beat_s)}: it is stopped, "
        "stuck or cut off",
        f"on {peer.host}: `ps -o stat,etime,cmd -p {peer.pid}` (T: stopped, then "
        f"`kill -CONT {peer.pid}`), else start it again",
    )


def _last_seen(peer: Peer) -> str:
    return f"{peer.service} is gone: last seen {duration(peer.beat_s)} ago ({_where(peer)})"


def _gone(peer: Peer, clients: list[Peer]) -> Finding:
    found = _last_seen(peer)
    if not clients:
        return info(found)
    names = ", ".join(client.name for client in clients[:5])
    todo = f"start it again; on {peer.host}, `ps -p {peer.pid}` says whether it hangs"
    return fail(f"{found}, and its clients are still there: {names}", todo)


def _unserved(patient: Patient, there: list[Peer]) -> Iterator[Finding]:
    """Yield the services that have clients, and of which no server was ever seen."""
    for service in dict.fromkeys(peer.service for peer in there):
        if patient.snapshot.server(service) is None:
            names = ", ".join(client.name for client in patient.snapshot.clients(service)[:5])
            yield fail(f"nobody serves {service}, and there are clients: {names}", "start it")


def _progress(peer: Peer) -> str:
    idle = "" if peer.idle_s is None else f", last progress {duration(peer.idle_s)} ago"
    waits = f"; waits for {'; '.join(peer.waits)}" if peer.waits else ""
    return f"{_who(peer)}{idle}{waits}"


def configs(patient: Patient) -> Iterator[Finding]:
    """Compare the config of each client with its server's."""
    compared = 0
    for server in patient.snapshot.peers:
        if not (server.is_server and server.is_there and server.config):
            continue
        for client in patient.snapshot.clients(server.service):
            if not client.config or client.does == "recorder":
                continue  # a recorder takes whatever is sent
            compared += 1
            try:
                check_same(client.config, server.config)
            except ConfigMismatch as error:
                yield fail(
                    f"{_who(client)} has {error.field}={error.mine!r}, the server has "
                    f"{error.theirs!r} ({_where(server)})",
                    "build both ends with the same config, and start the client again",
                )
                compared -= 1
    if compared:
        yield ok(f"{compared} of the clients have their server's")
    elif not any(not peer.is_server for peer in patient.snapshot.peers):
        yield skip("there are no clients to compare")


def versions(patient: Patient) -> Iterator[Finding]:
    """Compare the versions of all nodes with this one."""
    found: dict[str, list[Peer]] = defaultdict(list)
    for peer in patient.snapshot.peers:
        if peer.is_there:
            found[peer.version].append(peer)
    others = {version: nodes for version, nodes in found.items() if version != __version__}
    for version, nodes in others.items():
        names = ", ".join(_who(peer) for peer in nodes[:3])
        told = f"agentlace {version}" if version else "an agentlace that does not tell its version"
        todo = f"pip install 'agentlace=={max(version, __version__)}' at the older end"
        yield warn(
            f"{names} {'has' if len(nodes) == 1 else 'have'} {told}, here is {__version__}", todo
        )
    if not others:
        who = f"; {len(found[__version__])} nodes have it too" if found else ""
        yield ok(f"agentlace {__version__} here{who}")


def _who(peer: Peer) -> str:
    name = "" if peer.is_server else f" {peer.name}"
    return f"{peer.does}{name} of {peer.service} ({_where(peer)})"


def _where(peer: Peer) -> str:
    return f"{peer.host} pid {peer.pid}"
