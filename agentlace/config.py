"""What a service is called and what both of its ends agree on, and where the broker is."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from agentlace.errors import AgentlaceError, ConfigMismatch

SCHEMES = ("redis", "rediss", "unix", "memory")
DEFAULT_PORT = 6379
DEFAULT_NAMESPACE = "default"


class BadSetting(AgentlaceError, ValueError):
    """An option or environment variable with which nothing can start."""

    def __init__(self, name: str, value: object, problem: str) -> None:
        """Name the setting and its value, and say what is wrong with it and what to do."""
        self.name = name
        self.value = value
        super().__init__(f"{name} {value!r}: {problem}")


@dataclass
class ActionConfig:
    """An action service.

    Attributes:
        port_number: names the service inside its namespace; no port is opened.
        action_keys: keys that ``act`` accepts.
        observation_keys: keys that ``obs`` can return.
        broadcast_port: any number switches ``publish_obs`` on, None leaves it off.
        version: of your protocol; both ends must have the same.
    """

    port_number: int
    action_keys: list[str]
    observation_keys: list[str]
    broadcast_port: int | None = None
    version: str = "0.0.1"


@dataclass
class TrainerConfig:
    """A trainer service.

    Attributes:
        port_number: names the service inside its namespace; no port is opened.
        broadcast_port: kept for existing programs; weights are always on offer.
        request_types: types that ``request`` accepts.
        rate_limit: calls of ``update`` or ``request`` per second and client, None for no limit.
        version: of your protocol; both ends must have the same.
        experimental_pipeline_port: accepted and without effect, the stream is a pipeline.
    """

    port_number: int = 5555
    broadcast_port: int = 5556
    request_types: list[str] = field(default_factory=list)
    rate_limit: int | None = None
    version: str = "0.0.2"
    experimental_pipeline_port: int | str | None = None


@dataclass
class InferenceConfig:
    """An inference service: ``port_number`` names it inside its namespace."""

    port_number: int
    version: str = "0.0.1"


Config = TypeVar("Config", ActionConfig, TrainerConfig, InferenceConfig)

_NOT_COMPARED = frozenset({"experimental_pipeline_port"})


def copy_of(config: Config) -> Config:
    """Return a copy that later changes to the caller's object do not reach."""
    return copy.deepcopy(config)


def described(config: ActionConfig | TrainerConfig | InferenceConfig) -> dict[str, Any]:
    """Return the fields that both ends compare, keys as sorted lists."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {
        name: sorted(set(value)) if isinstance(value, (list, tuple, set, frozenset)) else value
        for name, value in values.items()
        if name not in _NOT_COMPARED
    }


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ConfigMismatch for the first field in which two descriptions differ."""
    for name in [*mine, *(key for key in theirs if key not in mine)]:
        if mine.get(name) != theirs.get(name):
            raise ConfigMismatch(name, mine.get(name), theirs.get(name))


@dataclass(frozen=True)
class BrokerURL:
    """Where the broker is, and which namespace of it is ours. Never shows its password.

    Attributes:
        scheme: ``redis``, ``rediss`` (TLS), ``unix``, or ``memory`` (in this process).
        host: host name, or the name of an in-process broker.
        port: TCP port.
        path: of the Unix socket.
        db: number of the Redis database.
        namespace: prefix of every key; services of different namespaces never meet.
        options: further query parameters, such as ``ssl_ca_certs``.
    """

    scheme: str
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    namespace: str = DEFAULT_NAMESPACE
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> BrokerURL:
        """Parse ``redis://user:password@host:port/db?ns=namespace`` and its kin.

        Raises:
            ValueError: not such an address; the message does not repeat a password.
            BadSetting: AGENTLACE_PASSWORD_FILE is needed and holds none.
        """
        parts = urlsplit(url if "://" in url else f"redis://{url}")
        if parts.scheme not in SCHEMES:
            raise ValueError(
                f"broker address with scheme {parts.scheme!r}: use one of "
                + ", ".join(f"{scheme}://" for scheme in SCHEMES)
            )
        options = dict(parse_qsl(parts.query))
        namespace = options.pop("ns", os.environ.get("AGENTLACE_NAMESPACE", DEFAULT_NAMESPACE))
        db = options.pop("db", "" if parts.scheme == "unix" else parts.path.strip("/")) or "0"
        if not namespace or set(namespace) & set("{}"):
            raise ValueError(f"namespace {namespace!r} must not be empty or contain braces")
        try:
            port, number = parts.port or DEFAULT_PORT, int(db)
        except ValueError:
            raise ValueError("broker address with a bad port or database number") from None
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "localhost",
            port=port,
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else _password_from_environment(),
            db=number,
            namespace=namespace,
            options=tuple(options.items()),
        )

    @classmethod
    def resolve(cls, broker: str | BrokerURL | None, host: str = "localhost") -> BrokerURL:
        """Return the broker to use: the argument, else AGENTLACE_BROKER, else ``host``'s."""
        if isinstance(broker, BrokerURL):
            return broker
        found = broker or os.environ.get("AGENTLACE_BROKER")
        if found:
            return cls.parse(found)
        return cls.parse(f"redis://{f'[{host}]' if ':' in host else host}:{DEFAULT_PORT}")

    @property
    def is_local(self) -> bool:
        """Whether a server may start the embedded broker at this address."""
        return self.scheme == "redis" and self.host in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        """Return the address without its password."""
        user = f"{quote(self.username)}:***@" if self.username else ""
        user = user or (":***@" if self.password else "")
        if self.scheme == "unix":
            where = f"{user}{self.path}"
        elif self.scheme == "memory":
            where = self.host
        else:
            where = f"{user}{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        db = f"/{self.db}" if self.db and self.scheme != "unix" else ""
        ns = f"?ns={self.namespace}" if self.namespace != DEFAULT_NAMESPACE else ""
        return f"{self.scheme}://{where}{db}{ns}"


def _password_from_environment() -> str | None:
    if password := os.environ.get("AGENTLACE_PASSWORD"):
        return password
    if path := os.environ.get("AGENTLACE_PASSWORD_FILE"):
        return read_password(path, "AGENTLACE_PASSWORD_FILE")
    return None


def read_password(path: str | Path, setting: str) -> str:
    """Return the password that a file holds.

    Raises:
        BadSetting: the file is missing, unreadable, empty or not text; the message names the
            setting and the path, and never shows the content.
    """
    todo = "write the password into a file that this user may read"
    try:
        password = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadSetting(setting, str(path), f"{error.strerror}: {todo}") from None
    except ValueError:
        raise BadSetting(setting, str(path), f"it is not UTF-8 text: {todo}") from None
    if not password:
        raise BadSetting(setting, str(path), f"it is empty: {todo}")
    return password
