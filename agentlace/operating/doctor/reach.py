"""Does anything answer at the address: its host name, or the file of its socket; its port."""

from __future__ import annotations

import os
import queue
import socket
import stat
import threading
from collections.abc import Iterator

from agentlace.config import address_of
from agentlace.operating.doctor.findings import Finding, fail, ok, skip, warn
from agentlace.operating.doctor.patient import TIMEOUT_S, Patient
from agentlace.transport.link import Address

RESOLVE_S = 5.0
"""How long a host name is waited for."""
START_HERE = "agentlace broker"


def address(patient: Patient) -> Iterator[Finding]:
    """Look up the host names of the address, or the file of its socket."""
    url = patient.url
    if url.scheme == "memory":
        yield ok("memory:// is a broker inside each process: no other process sees it")
        return
    if url.scheme == "unix":
        yield _socket_file(url.path)
        return
    for host in dict.fromkeys(host for host, _ in patient.servers):
        yield _resolved(host)


def _socket_file(path: str) -> Finding:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        todo = f"start the broker on this machine ({START_HERE}), or use its redis:// address"
        return fail(f"{path or 'no path'}: {error.strerror}", todo)
    if not stat.S_ISSOCK(mode):
        return fail(f"{path} is no socket", "name the broker's unixsocket, or use redis://")
    return ok(f"{path} is a socket")


def _resolved(host: str) -> Finding:
    outcome: queue.Queue[list[str] | OSError] = queue.Queue()

    def resolve() -> None:
        try:
            told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            outcome.put(list(dict.fromkeys(str(entry[4][0]) for entry in told)))
        except (OSError, UnicodeError) as error:
            outcome.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=resolve, name="resolve", daemon=True).start()
    todo = (
        f"see `getent hosts {host}`; use the broker's IP address, which `hostname -I` says there, "
        "or add the name to /etc/hosts"
    )
    try:
        found = outcome.get(timeout=RESOLVE_S)
    except queue.Empty:
        return fail(f"no name server says within {RESOLVE_S:g} s who {host!r} is", todo)
    if isinstance(found, OSError):
        return fail(f"{host!r} is no host that is known here ({found.strerror or found})", todo)
    return ok(host if found == [host] else f"{host} is {', '.join(found[:3])}")


def port(patient: Patient) -> Iterator[Finding]:
    """Connect to each server that the address names."""
    url, failures = patient.url, []
    if url.scheme == "memory":
        yield skip("memory:// has no port")
        return
    servers = patient.servers if patient.is_networked else [(url.path, 0)]
    for server in servers:
        try:
            with opened(server):
                patient.accepting.append(server)
        except OSError as error:
            failures.append(_closed(patient, server, error))
    if patient.accepting:
        yield ok(f"{', '.join(map(name_of, patient.accepting))} accepts connections")
    for failure in failures:  # of several servers, one is enough
        yield warn(failure.found, failure.remedy) if patient.accepting else failure


def name_of(server: Address) -> str:
    """Return how a server is called in messages."""
    return address_of(*server) if server[1] else server[0]


def opened(server: Address) -> socket.socket:
    """Return a new connection to a server; raises OSError."""
    if server[1]:
        return socket.create_connection(server, TIMEOUT_S)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(TIMEOUT_S)
        sock.connect(server[0])
    except BaseException:
        sock.close()
        raise
    return sock


def _closed(patient: Patient, server: Address, error: OSError) -> Finding:
    name, number = name_of(server), server[1]
    if isinstance(error, ConnectionRefusedError):
        other = f" --port {number}" if number not in (0, 6379) else ""
        todo = f"start one there: {START_HERE}{other}"
        if patient.is_networked and not patient.is_here:
            todo = (
                "start one there, open to other machines: agentlace broker init DIR, then "
                "agentlace broker --dir DIR; a broker that is bound to 127.0.0.1 refuses others too"
            )
        return fail(f"nothing listens at {name}", todo)
    if isinstance(error, TimeoutError):
        return fail(
            f"{name} does not answer within {TIMEOUT_S:g} s",
            f"is the machine on (ping {server[0]}), and does a firewall let TCP port {number} "
            "through, there and here?",
        )
    reason = error.strerror or str(error)
    return fail(
        f"{name} cannot be reached: {reason}", f"see `ip route get {server[0]}`, and ping it"
    )
