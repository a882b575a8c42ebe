"""A directory that ``agentlace broker init`` has made: a broker with users, passwords and TLS.

::

    redis.conf          what the server is started with; it includes the two others
    broker.conf         the operator's settings that every broker has (broker/redis.conf)
    tls.conf            where the certificates are
    users.acl           one user per role, its password as a hash (broker/users.acl)
    tls/                the lab's CA, and the broker's certificate and key
    roles/<role>/       what a machine of this role needs: password, ca.crt, client.crt, client.key
    data/               the append-only file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from agentlace.config import BadSetting, BrokerURL, read_password
from agentlace.transport.server_process import Settings, broker_file

ROLES = ("actor", "learner", "inference", "recorder", "observer", "operator", "admin")


@dataclass(frozen=True)
class SecuredDirectory:
    """Where the files are."""

    path: Path

    @property
    def conf(self) -> Path:
        """Return what the server is started with."""
        return self.path / "redis.conf"

    @property
    def common_conf(self) -> Path:
        """Return the settings that every broker has."""
        return self.path / "broker.conf"

    @property
    def tls_conf(self) -> Path:
        """Return the settings of TLS."""
        return self.path / "tls.conf"

    @property
    def users(self) -> Path:
        """Return the users and their rules."""
        return self.path / "users.acl"

    @property
    def tls(self) -> Path:
        """Return the directory of the CA and of the broker's certificate."""
        return self.path / "tls"

    @property
    def data(self) -> Path:
        """Return the directory of the append-only file."""
        return self.path / "data"

    @property
    def roles(self) -> Path:
        """Return the directory of all roles' directories."""
        return self.path / "roles"

    def role(self, role: str) -> Path:
        """Return the directory of what a machine of this role needs."""
        return self.roles / role

    def password(self, role: str) -> Path:
        """Return the file with a role's password."""
        return self.role(role) / "password"

    @property
    def is_made(self) -> bool:
        """Whether ``agentlace broker init`` has made it."""
        return self.users.exists() and self.conf.exists()

    @property
    def port(self) -> int:
        """Return the port on which the broker listens."""
        found = re.findall(r"^port\s+(\d+)", self.conf.read_text(), re.MULTILINE)
        if not found:
            raise BadSetting("dir", str(self.path), f"{self.conf} names no port")
        return int(found[-1])


@dataclass(frozen=True)
class SecuredSettings(Settings):
    """How the broker of such a directory runs in the foreground.

    Attributes:
        secured: the directory.
        tls: whether it speaks TLS; without it passwords and data travel in the clear.
    """

    secured: SecuredDirectory = SecuredDirectory(Path())
    tls: bool = True

    @classmethod
    def of(cls, directory: SecuredDirectory, host: str | None, tls: bool) -> SecuredSettings:
        """Return the settings for a directory; its own host unless there is another.

        Raises:
            BadSetting: a file is missing.
        """
        password = read_password(directory.password("admin"), "--dir")
        return cls(
            host=host or "*",
            port=directory.port,
            directory=str(directory.data),
            password=password,
            username="admin",
            secured=directory,
            tls=tls,
        )

    @property
    def url(self) -> BrokerURL:
        """Return the address under which the administrator of this machine reaches it."""
        plain = super().url
        if not self.tls:
            return plain
        own = self.secured.role("admin")
        options = {"ca_file": own / "ca.crt"}
        if (own / "client.crt").exists():
            options |= {"cert_file": own / "client.crt", "key_file": own / "client.key"}
        told = tuple((name, str(path)) for name, path in options.items())
        return BrokerURL(
            "rediss", plain.host, self.port, "", self.username, self.password, options=told
        )

    def config(self) -> str:
        """Return the server's configuration: that of the directory, for the foreground."""
        lines = self.secured.conf.read_text().splitlines()
        if not self.tls:
            lines = [line for line in lines if line.strip() != include(self.secured.tls_conf)]
        settings = {"daemonize": "no", "loglevel": "notice", **self._socket()}
        if self.host != "*":
            settings["bind"] = self.host
        return "\n".join([*lines, *self._lines(settings), ""])


def include(path: Path) -> str:
    """Return the line that includes a file."""
    return f'include "{path}"'


def users_template() -> str:
    """Return the rules of all roles, as operators read them."""
    return broker_file("users.acl").read_text(encoding="utf-8")


def users_file(hashes: dict[str, str], namespace: str = "*") -> str:
    """Return the users as a server takes them: a line each, without comments.

    Args:
        hashes: SHA-256 of each role's password, in hexadecimal.
        namespace: the only one whose keys they reach; * for every one.
    """
    lines: list[str] = []
    for line in users_template().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if line[0].isspace():
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    rules = "\n".join(lines) + "\n"
    if namespace != "*":
        for pattern, own in (("{*:", f"{{{namespace}:"), ("{*", f"{{{namespace}:*")):
            rules = rules.replace(f"al:{pattern}", f"al:{own}")
    return re.sub(r"<(\w+)>", lambda found: hashes[found[1]], rules)
