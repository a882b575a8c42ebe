"""``agentlace broker init``: users, passwords and certificates for a broker of a lab."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlace.config import BadSetting
from agentlace.errors import MissingExtra
from agentlace.transport.secured import ROLES, SecuredDirectory, include, users_file
from agentlace.transport.server_process import default_maxmemory, redis_conf

if TYPE_CHECKING:
    from agentlace.cli.certificates import Certificate

PASSWORD_BYTES = 32
LOCAL = ("localhost", "127.0.0.1", "::1")
"""The broker's own machine reaches it by these."""
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:.]+")
_NAMESPACE = re.compile(r"[\w.-]+", re.ASCII)


def init(
    directory: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which others reach it; several times for several."),
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 6379,
    namespace: Annotated[
        str, typer.Option(help="The only namespace that roles reach; * for every one.")
    ] = "*",
    client_certs: Annotated[
        bool, typer.Option("--client-certs", help="Let in only who has a certificate as well.")
    ] = False,
    days: Annotated[int, typer.Option(help="So long the certificates hold.", min=1)] = 730,
    renew: Annotated[
        bool, typer.Option("--renew", help="Only make new certificates, of the same CA.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there: all passwords and the CA.")
    ] = False,
) -> None:
    """Make users with passwords, a CA and certificates for a broker, in DIRECTORY."""
    if namespace != "*" and not _NAMESPACE.fullmatch(namespace):
        raise BadSetting("--namespace", namespace, "use letters, digits, - _ and . only")
    for name in host or ():
        if not _HOST.fullmatch(name):
            raise BadSetting("--host", name, "it is neither a host name nor an address")
    place = SecuredDirectory(directory.expanduser().resolve())
    if re.search(r'["\\\x00-\x1f]', str(place.path)):
        raise BadSetting("directory", str(place.path), "choose a path without quotes in it")
    try:
        if renew:
            _renew(place, host or [], days)
            typer.echo(f"new certificates in {place.path}: copy roles/ANY/client.* where they are")
            return
        if place.path.exists() and any(place.path.iterdir()) and not force:
            todo = "choose another, or --force to replace all passwords and certificates in it"
            raise BadSetting("directory", str(place.path), f"there is something in it: {todo}")
        hosts = host or [socket.gethostname()]
        _make(place, hosts, port, namespace, client_certs, days)
    except OSError as error:
        problem = f"{error.strerror}: choose a directory that this user may write to"
        raise BadSetting("directory", str(error.filename or place.path), problem) from None
    typer.echo(f"made {place.path}: start the broker with\n  agentlace broker --dir {place.path}")
    typer.echo(advice(place, hosts[0], port, client_certs))


def advice(place: SecuredDirectory, host: str, port: int, client_certs: bool) -> str:
    """Return what to do on the other machines."""
    where = f"[{host}]" if ":" in host else host
    files = ["ca_file=$HOME/agentlace/ca.crt"]
    if client_certs:
        files += [f"{kind}_file=$HOME/agentlace/client.{end}" for kind, end in _CLIENT]
    return (
        f"on the other machines, per role ({', '.join(ROLES[:-1])}): copy the role's directory\n"
        f"  scp -r {place.role('actor')} ROBOT:agentlace\n"
        "and set there\n"
        f'  export AGENTLACE_BROKER="rediss://actor@{where}:{port}?{"&".join(files)}"\n'
        '  export AGENTLACE_PASSWORD_FILE="$HOME/agentlace/password"'
    )


_CLIENT = (("cert", "crt"), ("key", "key"))


def _make(
    place: SecuredDirectory,
    hosts: list[str],
    port: int,
    namespace: str,
    client_certs: bool,
    days: int,
) -> None:
    certificates = _certificates()
    place.path.parent.mkdir(parents=True, exist_ok=True)
    for path in (place.path, place.tls, place.data, place.roles, *map(place.role, ROLES)):
        path.mkdir(mode=0o700, exist_ok=True)
    passwords = {role: secrets.token_urlsafe(PASSWORD_BYTES) for role in ROLES}
    hashed = {role: hashlib.sha256(text.encode()).hexdigest() for role, text in passwords.items()}
    for role, password in passwords.items():
        _write(place.password(role), f"{password}\n".encode())
    _write(place.users, users_file(hashed, namespace).encode())
    authority = certificates.make_authority(f"agentlace broker {hosts[0]}")
    _write(place.tls / "ca.key", authority.key_pem)
    _write_certificate(place, authority, hosts, days, client_certs)
    _write(place.common_conf, redis_conf().read_bytes())
    _write(place.tls_conf, _tls_conf(place, port, client_certs).encode())
    _write(place.conf, _conf(place, port).encode())


def _renew(place: SecuredDirectory, hosts: list[str], days: int) -> None:
    certificates = _certificates()
    if not place.is_made:
        raise BadSetting("directory", str(place.path), "agentlace broker init has not made it")

    def load(name: str) -> Certificate:
        parts = ((place.tls / f"{name}.{end}").read_bytes() for end in ("crt", "key"))
        try:
            found: Certificate = certificates.Certificate.load(*parts)
            return found
        except (TypeError, ValueError):
            problem = "it and its key are no certificate of agentlace broker init"
            raise BadSetting("--renew", str(place.tls / f"{name}.crt"), problem) from None

    hosts = hosts or load("server").hosts
    has_clients = (place.role("admin") / "client.crt").exists()
    _write_certificate(place, load("ca"), hosts, days, has_clients)


def _write_certificate(
    place: SecuredDirectory,
    authority: Certificate,
    hosts: Iterable[str],
    days: int,
    client_certs: bool,
) -> None:
    certificates = _certificates()
    server = certificates.issue_server(authority, dict.fromkeys([*hosts, *LOCAL]), days)
    _write(place.tls / "ca.crt", authority.certificate_pem)
    _write(place.tls / "server.key", server.key_pem)
    _write(place.tls / "server.crt", server.certificate_pem)
    for role in ROLES:
        own = place.role(role)
        _write(own / "ca.crt", authority.certificate_pem)
        if client_certs:
            client = certificates.issue_client(authority, role, days)
            _write(own / "client.key", client.key_pem)
            _write(own / "client.crt", client.certificate_pem)
        else:
            for end in ("key", "crt"):
                (own / f"client.{end}").unlink(missing_ok=True)


def _conf(place: SecuredDirectory, port: int) -> str:
    return (
        "# Made by `agentlace broker init`. Start it with\n"
        f"#   agentlace broker --dir {place.path}\n"
        "# or, as a service, with redis-server or valkey-server, Redis 7 or newer, and this file.\n"
        f"{include(place.common_conf)}\n"
        "bind * -::*\n"
        f"port {port}\n"
        f'dir "{place.data}"\n'
        f'aclfile "{place.users}"\n'
        "# Half of the memory of the machine on which this was made, and at most 4 GiB.\n"
        f"maxmemory {default_maxmemory()}\n"
        "# Without the next line passwords and transitions travel in the clear.\n"
        f"{include(place.tls_conf)}\n"
    )


def _tls_conf(place: SecuredDirectory, port: int, client_certs: bool) -> str:
    return (
        "port 0\n"
        f"tls-port {port}\n"
        f'tls-ca-cert-file "{place.tls / "ca.crt"}"\n'
        f'tls-cert-file "{place.tls / "server.crt"}"\n'
        f'tls-key-file "{place.tls / "server.key"}"\n'
        f"tls-auth-clients {'yes' if client_certs else 'no'}\n"
        'tls-protocols "TLSv1.2 TLSv1.3"\n'
    )


def _write(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _certificates() -> Any:
    """Return the module that makes certificates."""
    try:
        from agentlace.cli import certificates
    except ImportError as error:
        raise MissingExtra("cryptography", "cli") from error
    return certificates
