"""Does a broker answer there, and does it let us in: TLS, protocol, password."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

from agentlace.errors import BrokerAuthFailed, BrokerUnreachable, TlsFailed
from agentlace.operating.doctor.findings import Finding, fail, of_error, ok, skip, warn
from agentlace.operating.doctor.patient import Patient
from agentlace.operating.doctor.reach import name_of, opened
from agentlace.transport import tls
from agentlace.transport.connection import Refused
from agentlace.transport.link import Address
from agentlace.wording import duration

GREETING_BYTES = 64
EXPIRES_SOON_S = 14 * 24 * 3600
"""A certificate that expires sooner is worth a warning."""
_REDIS = b"+-"
"""What every answer to a PING begins with."""


def encryption(patient: Patient) -> Iterator[Finding]:
    """Shake hands, if the address wants TLS; see that the other end does not, if it doesn't."""
    url = patient.url
    if not patient.is_networked:
        yield skip(f"{url.scheme}:// needs none")
    elif url.has_tls:
        for server in patient.accepting:
            yield _shaken(patient, server)
    elif url.scheme == "redis" and not _greeting(patient, patient.accepting[0]):
        trouble = tls.look_closer(url, None)
        if trouble is not None:
            yield of_error(trouble)
        else:
            yield ok("not used")
    elif patient.is_here:
        yield ok("not used, and not needed on this machine")
    else:
        yield ok("not used: passwords and transitions travel in the clear")


def _shaken(patient: Patient, server: Address) -> Finding:
    settings = tls.settings_of(patient.url)
    context = ssl.create_default_context(cafile=settings.get("ssl_ca_certs"))
    context.check_hostname = settings["ssl_check_hostname"]
    is_checked = settings["ssl_cert_reqs"] != "none"
    context.verify_mode = ssl.CERT_REQUIRED if is_checked else ssl.CERT_NONE
    if "ssl_certfile" in settings:
        context.load_cert_chain(settings["ssl_certfile"], settings["ssl_keyfile"])
    try:
        with (
            opened(server) as raw,
            context.wrap_socket(raw, server_hostname=server[0]) as sock,
        ):
            sock.sendall(b"PING\r\n")
            sock.recv(GREETING_BYTES)  # a refused client certificate is told only here
            return _certified(sock, server, is_checked)
    except ssl.SSLError as error:
        trouble = tls.failure(error, patient.url) or tls.look_closer(patient.url, settings)
        return of_error(trouble) if trouble else _unknown(server, error)
    except OSError as error:
        trouble = tls.look_closer(patient.url, settings)
        return of_error(trouble) if trouble else _unknown(server, error)


def _unknown(server: Address, error: OSError) -> Finding:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    todo = f"see `openssl s_client -connect {name_of(server)}`; use redis:// if it has no TLS"
    return fail(f"no TLS with {name_of(server)} ({reason})", todo)


def _certified(sock: ssl.SSLSocket, server: Address, is_checked: bool) -> Finding:
    said = f"{sock.version()} with {name_of(server)}"
    if not is_checked:
        todo = "point AGENTLACE_CA_FILE at the broker's ca.crt, and take verify=none away"
        return warn(f"{said}, whoever that is: verify=none checks nothing", todo)
    until = ssl.cert_time_to_seconds(str((sock.getpeercert() or {}).get("notAfter")))
    left_s = until - time.time()
    if left_s < EXPIRES_SOON_S:
        todo = "renew it there: agentlace broker init DIR --renew"
        return warn(f"{said}; its certificate expires in {duration(left_s)}", todo)
    return ok(f"{said}; its certificate is valid for another {duration(left_s)}")


def _greeting(patient: Patient, server: Address) -> bytes | None:
    """Return what a server says to a PING in the clear; None if it keeps silent."""
    if server not in patient.greetings:
        patient.greetings[server] = _said_by(server)
    return patient.greetings[server]


def _said_by(server: Address) -> bytes | None:
    try:
        with opened(server) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(GREETING_BYTES)
    except TimeoutError:
        return None
    except OSError:
        return b""


def protocol(patient: Patient) -> Iterator[Finding]:
    """See that what listens there speaks the protocol of Redis."""
    url = patient.url
    if url.scheme == "memory":
        yield skip("memory:// has no server")
        return
    if url.has_tls:
        yield skip("told by the password's check, behind TLS")
        return
    server = patient.accepting[0]
    said = _greeting(patient, server)
    who = f"`ss -ltnp 'sport = :{server[1]}'` there says whose this one is"
    todo = f"use the broker's own port, as a rule 6379; {who}"
    if said and said[:1] in _REDIS:
        yield ok(f"{name_of(server)} speaks the protocol of Redis")
    elif said:
        what = "a web server" if said[:5] == b"HTTP/" or said[:1] == b"<" else "no Redis"
        shown = "".join(c if c.isprintable() else " " for c in said.decode("latin-1")[:40])
        yield fail(f"{name_of(server)} is {what}: it says {shown.strip()!r}", todo)
    elif said is None:
        todo = f"if it is a broker it hangs: look at it there and restart it; else {todo}"
        yield fail(f"{name_of(server)} accepts connections and says nothing", todo)
    else:
        yield fail(f"{name_of(server)} hangs up when it is spoken to", todo)


def password(patient: Patient) -> Iterator[Finding]:
    """Log in."""
    url = patient.url
    if url.scheme == "memory":
        yield skip("memory:// has none")
        return
    try:
        patient.channel.call("TIME")  # a broker that cannot write to its disk refuses a PING
    except TlsFailed as error:
        yield of_error(error)
    except BrokerAuthFailed as error:
        yield _refused(patient, error)
    except BrokerUnreachable as error:
        yield _no_session(error)
    except Refused as error:
        yield fail(str(error), "see the broker's log")
    else:
        yield _let_in(patient)


def _refused(patient: Patient, error: BrokerAuthFailed) -> Finding:
    user, reason = patient.url.username or "default", error.reason
    put = "export AGENTLACE_USERNAME=USER AGENTLACE_PASSWORD_FILE=FILE"
    where = "(roles/USER/password of the directory that `agentlace broker init` made)"
    if error.is_forbidden:  # let in, and not even PING is allowed: the rights' business
        return ok(f"let in as {user!r}")
    if "NOAUTH" in reason or "Authentication required" in reason:
        return fail("the broker wants a password, and there is none here", f"{put} {where}")
    if "DENIED" in reason or "protected mode" in reason:
        todo = "give it users: agentlace broker init DIR; or set a requirepass in its redis.conf"
        return fail("the broker has no password, and lets in only its own machine", todo)
    if "without any password" in reason:
        todo = "unset AGENTLACE_PASSWORD and AGENTLACE_PASSWORD_FILE, or take it out of the address"
        return fail("the broker has no password, and one is given here", todo)
    if not patient.url.password:
        return fail(f"the broker refuses user {user!r} without a password", f"{put} {where}")
    return fail(f"the broker refuses user {user!r} with this password", f"{put} {where}")


def _no_session(error: BrokerUnreachable) -> Finding:
    reason = error.reason or str(error)
    if "max number of clients" in reason:
        todo = "raise maxclients in its redis.conf, or stop some; redis-cli CLIENT LIST names them"
    elif "LOADING" in reason or "loading" in reason:
        todo = "it reads its log after a start: wait, and run it again"
    elif "replica" in reason or "sentinel" in reason:
        todo = "see docs/high-availability.md; sentinels: redis-cli -p 26379 SENTINEL MASTERS"
    elif "cluster" in reason.lower():
        todo = "see redis-cli CLUSTER INFO there; a single server's address begins with redis://"
    else:
        todo = "run it again; if it stays so, look into the broker's log"
    hint = str(error).rpartition("): ")[2] if "): " in str(error) else ""
    return fail(reason, todo if not hint or hint == BrokerUnreachable.HINT else hint)


def _let_in(patient: Patient) -> Finding:
    if patient.url.password:
        return ok(f"let in as user {patient.user!r}")
    if patient.is_here:
        return ok(f"let in as user {patient.user!r} without one")
    return warn(
        "none is needed: whoever reaches the port may drive your robot",
        "give it users: agentlace broker init DIR, then agentlace broker --dir DIR",
    )
