"""TLS with the broker: which files it takes, what is checked, and in plain words what went wrong.

The broker's certificate is checked, and its host name, unless the address says otherwise
(``?verify=ca`` without the name, ``?verify=none`` without anything).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from agentlace.config import BadSetting, BrokerURL
from agentlace.errors import AgentlaceError, BrokerUnreachable, TlsFailed
from agentlace.logs import about

log = logging.getLogger(__name__)

FILES = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}
"""Options of an address, and what redis-py calls them; those names are accepted as well."""
PROBE_S = 1.0
VERIFY = ("full", "ca", "none")
_UNSIGNED = {2, 18, 19, 20, 21}
_NOT_YET, _EXPIRED = 9, 10
_NAMES = {62, 64}
"""Codes of OpenSSL (x509_vfy.h)."""
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


class Terms:
    """On what terms one address is connected to.

    Attributes:
        have_worked: whether there was a connection: then both ends speak TLS, or neither does.
    """

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._settings: dict[str, Any] | None = None
        self.have_worked = False

    @property
    def settings(self) -> dict[str, Any]:
        """What redis-py's connections take beside the rest; raises as :func:`settings_of`."""
        if self._settings is None:
            self._settings = settings_of(self._url) if self._url.has_tls else {}
        return self._settings

    def explained(
        self, trouble: AgentlaceError, error: Exception, is_silent: bool
    ) -> AgentlaceError:
        """Return what is wrong with a server that hung up: often one end does not speak TLS.

        It is looked at once, as that costs a connection.

        Args:
            trouble: what it looks like.
            error: what came up.
            is_silent: whether it is only that nothing came in time.
        """
        if type(trouble) is not BrokerUnreachable or isinstance(error.__cause__, OSError):
            return trouble  # it is clear, or nobody has answered
        url = self._url
        if self.have_worked or url.scheme not in ("redis", "rediss"):
            return trouble
        if is_silent and not url.has_tls:
            return trouble
        self.have_worked = True
        return look_closer(url, self._settings) or trouble


def settings_of(url: BrokerURL) -> dict[str, Any]:
    """Return what redis-py's TLS connections take, from the address or else the environment.

    Raises:
        BadSetting: an option is unknown, or a file cannot be used.
    """
    options = dict(url.options)
    verify = options.pop("verify", "full")
    if verify not in VERIFY:
        raise BadSetting("verify", verify, f"it must be one of {', '.join(VERIFY)}")
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    for option, theirs in FILES.items():
        variable = f"AGENTLACE_{option.upper()}"
        told = {option, theirs} & options.keys()
        names[theirs] = told.pop() if told else variable
        path = options.pop(names[theirs], None) or os.environ.get(variable)
        if path:
            found[theirs] = os.path.expanduser(path)
    if options:
        known = ", ".join([*FILES, "verify"])
        raise BadSetting("broker address", f"?{next(iter(options))}=…", f"it takes ns, db, {known}")
    _check_files(found, names)
    if verify == "none":
        text = "the broker at %s is not checked (verify=none): anybody could be it"
        log.warning(text, url, extra=about())
    found["ssl_cert_reqs"] = "none" if verify == "none" else "required"
    found["ssl_check_hostname"] = verify == "full"
    found["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    return found


def _check_files(found: dict[str, str], names: dict[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca := found.get("ssl_ca_certs"):
        with _readable(names["ssl_ca_certs"], ca, "it holds no certificate (PEM)"):
            context.load_verify_locations(ca)
    cert, key = found.get("ssl_certfile"), found.get("ssl_keyfile")
    if bool(cert) != bool(key):
        given, missing = ("cert", "key") if cert else ("key", "cert")
        problem = f"it needs the other half as well: AGENTLACE_{missing.upper()}_FILE"
        raise BadSetting(names[f"ssl_{given}file"], cert or key, problem)
    for name, path in (("ssl_certfile", cert), ("ssl_keyfile", key)):
        if path:
            with _readable(names[name], path, ""), open(path, "rb"):
                pass
    if cert and key:
        problem = "it and its key do not belong together, or the key has a passphrase"
        with _readable(names["ssl_certfile"], cert, problem):
            context.load_cert_chain(cert, key, password=lambda: b"")


@contextlib.contextmanager
def _readable(name: str, path: str, problem: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        raise BadSetting(name, path, problem) from None
    except OSError as error:
        raise BadSetting(name, path, f"{error.strerror}: name a file to read") from None


def failure(error: BaseException, url: BrokerURL) -> TlsFailed | None:
    """Return what an error says of TLS, None if it has nothing to do with it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    if not isinstance(seen, ssl.SSLError):
        return None
    if isinstance(seen, ssl.SSLCertVerificationError):
        return _unverified(seen, url)
    reason = seen.reason or ""
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        todo = "name its files in AGENTLACE_CERT_FILE and AGENTLACE_KEY_FILE"
        return TlsFailed(str(url), "it asks for a client certificate", todo)
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        words = reason.lower().replace("_", " ")
        todo = "use one that its CA has signed and that has not expired"
        return TlsFailed(str(url), f"it does not accept this client's certificate: {words}", todo)
    if reason in _NOT_TLS:
        return _plain(url)
    return None


def _unverified(error: ssl.SSLCertVerificationError, url: BrokerURL) -> TlsFailed:
    code = error.verify_code
    reason, todo = f"its certificate is refused: {error.verify_message}", "renew it"
    if code in _UNSIGNED:
        reason = "its certificate is not signed by a CA that is known here"
        todo = "point AGENTLACE_CA_FILE at the ca.crt of that broker"
    elif code == _EXPIRED:
        reason = "its certificate has expired"
        todo = "renew it there (agentlace broker init DIR --renew)"
    elif code == _NOT_YET:
        reason, todo = "its certificate is not valid yet", "set the clocks of both machines"
    elif code in _NAMES:
        reason = f"its certificate is not made for the name {url.host!r}"
        todo = "use a name that is in it, or make one with agentlace broker init DIR --host NAME"
    return TlsFailed(str(url), reason, todo)


def look_closer(url: BrokerURL, settings: Mapping[str, Any] | None) -> TlsFailed | None:
    """Return what is wrong with a server that hung up or was silent, as far as that can be seen.

    Costs one more connection, of at most PROBE_S.
    """
    with contextlib.suppress(OSError):
        if url.scheme == "redis":
            return _looked_at_plain(url)
        if settings is not None:
            return _looked_at_tls(url, settings)
    return None


def _looked_at_plain(url: BrokerURL) -> TlsFailed | None:
    """Return that TLS is needed if a server answers a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _opened(url) as raw, context.wrap_socket(raw):
            pass
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return None
    todo = "use rediss:// instead of redis://, with AGENTLACE_CA_FILE"
    return TlsFailed(str(url), "what answers there speaks TLS", todo)


def _looked_at_tls(url: BrokerURL, settings: Mapping[str, Any]) -> TlsFailed | None:
    """Return why a server ends TLS: it says so behind the handshake, to who listens first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if "ssl_certfile" in settings:
        context.load_cert_chain(settings["ssl_certfile"], settings["ssl_keyfile"])
    try:
        with _opened(url) as raw, context.wrap_socket(raw) as sock:
            sock.recv(1)
    except ssl.SSLError as error:
        return failure(error, url)
    except TimeoutError:
        with _opened(url) as sock:
            sock.sendall(b"PING\r\n")
            if sock.recv(8)[:5] in (b"+PONG", b"-NOAU", b"-DENI"):
                return _plain(url)
    return None


def _opened(url: BrokerURL) -> socket.socket:
    return socket.create_connection((url.host, url.port), PROBE_S)


def _plain(url: BrokerURL) -> TlsFailed:
    todo = "use redis:// for a broker without TLS, or the port of its TLS"
    return TlsFailed(str(url), "what answers there does not speak TLS", todo)
