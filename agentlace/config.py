"""What a service is called and what both of its ends agree on, and where the broker is."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from agentlace import image_codecs
from agentlace.errors import AgentlaceError, ConfigMismatch

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "unix", "memory", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
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
        image_codecs: how images in observations travel, by their place (``camera``, or
            ``cameras/wrist`` in nested dicts): ``raw`` (as they are, like all that is not
            named), ``png`` (lossless), ``jpeg`` or ``jpeg:85`` (lossy, with its quality).
    """

    port_number: int
    action_keys: list[str]
    observation_keys: list[str]
    broadcast_port: int | None = None
    version: str = "0.0.1"
    image_codecs: dict[str, str] = field(default_factory=dict)


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
    """Return the fields that both ends compare, keys as sorted lists.

    A field that earlier versions lack is among them only if it says something: so these match.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    if codecs := checked_codecs(values.pop("image_codecs", {})):
        values["image_codecs"] = codecs
    return {
        name: sorted(set(value)) if isinstance(value, (list, tuple, set, frozenset)) else value
        for name, value in values.items()
        if name not in _NOT_COMPARED
    }


def checked_codecs(codecs: Mapping[str, str]) -> dict[str, str]:
    """Return image codecs in one spelling, without those that do nothing; raises BadSetting."""
    try:
        return image_codecs.in_one_spelling(codecs)
    except ValueError as error:
        raise BadSetting("image_codecs", codecs, str(error)) from None


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ConfigMismatch for the first field in which two descriptions differ."""
    for name in [*mine, *(key for key in theirs if key not in mine)]:
        if mine.get(name) != theirs.get(name):
            raise ConfigMismatch(name, mine.get(name), theirs.get(name))


@dataclass(frozen=True)
class BrokerURL:
    """Where the broker is, and which namespace of it is ours. Never shows its password.

    Attributes:
        scheme: ``redis``, ``unix``, or ``memory`` (in this process); ``redis+sentinel`` and
            ``redis+cluster``, where several servers are the broker. ``rediss`` for TLS.
        host: host name, or the name of an in-process broker; the first one of ``nodes``.
        port: TCP port.
        nodes: hosts and ports of the sentinels, or of some of the cluster's nodes.
        master: the name under which the sentinels know the broker.
        sentinel_username: of the sentinels themselves, if they have users of their own.
        sentinel_password: of the sentinels themselves, if they have one.
        path: of the Unix socket.
        db: number of the Redis database.
        namespace: prefix of every key; services of different namespaces never meet.
        options: further query parameters, such as ``ca_file`` (:mod:`agentlace.transport.tls`).
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
    nodes: tuple[tuple[str, int], ...] = ()
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> BrokerURL:
        """Parse ``redis://user:password@host:port/db?ns=namespace`` and its kin.

        Those of several servers are ``redis+sentinel://host:port,host:port/master/db`` and
        ``redis+cluster://host:port,host:port``.

        Raises:
            ValueError: not such an address; the message does not repeat a password.
            BadSetting: AGENTLACE_PASSWORD_FILE is needed and holds none.
        """
        try:
            parts = urlsplit(url if "://" in url else f"redis://{url}")
        except ValueError:
            raise ValueError("broker address that cannot be read") from None
        if parts.scheme not in SCHEMES:
            raise ValueError(
                f"broker address with scheme {parts.scheme!r}: use one of "
                + ", ".join(f"{scheme}://" for scheme in SCHEMES)
            )
        nodes, path = _nodes_of(parts.netloc, parts.scheme), parts.path.strip("/")
        master = ""
        if parts.scheme in SENTINEL_SCHEMES:
            master, _, path = path.partition("/")
            if not master:
                raise ValueError(
                    "broker address without the name under which its sentinels know it: "
                    "redis+sentinel://host:26379,host:26379/NAME"
                )
        options = dict(parse_qsl(parts.query))
        namespace = options.pop("ns", os.environ.get("AGENTLACE_NAMESPACE", DEFAULT_NAMESPACE))
        sentinel_username = options.pop("sentinel_username", None)
        db = options.pop("db", "" if parts.scheme == "unix" else path) or "0"
        if not namespace or set(namespace) & set("{}"):
            raise ValueError(f"namespace {namespace!r} must not be empty or contain braces")
        try:
            host, port = nodes[0] if nodes else (parts.hostname, parts.port)
            number = int(db)
        except ValueError:
            raise ValueError("broker address with a bad port or database number") from None
        if number and parts.scheme in CLUSTER_SCHEMES:
            raise ValueError(f"database {number} of a cluster, which has only 0: use ?ns= instead")
        return cls(
            scheme=parts.scheme,
            host=host or "localhost",
            port=port or DEFAULT_PORT,
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            username=unquote(parts.username or os.environ.get("AGENTLACE_USERNAME", "")) or None,
            password=(
                unquote(parts.password)
                if parts.password
                else _from_environment("AGENTLACE_PASSWORD")
            ),
            db=number,
            namespace=namespace,
            options=tuple(options.items()),
            nodes=nodes,
            master=unquote(master),
            sentinel_username=sentinel_username,
            sentinel_password=_from_environment("AGENTLACE_SENTINEL_PASSWORD") if master else None,
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

    @property
    def has_sentinels(self) -> bool:
        """Whether sentinels say which server is the broker."""
        return self.scheme in SENTINEL_SCHEMES

    @property
    def is_cluster(self) -> bool:
        """Whether the broker is a cluster, each node of which has some of the keys."""
        return self.scheme in CLUSTER_SCHEMES

    @property
    def has_replicas(self) -> bool:
        """Whether a replica takes over for a server that dies, perhaps without its last writes."""
        return self.has_sentinels or self.is_cluster

    @property
    def has_tls(self) -> bool:
        """Whether connections to the broker are encrypted."""
        return self.scheme.startswith("rediss")

    def __str__(self) -> str:
        """Return the address without its password."""
        user = f"{quote(self.username)}:***@" if self.username else ""
        user = user or (":***@" if self.password else "")
        if self.scheme == "unix":
            where = f"{user}{self.path}"
        elif self.scheme == "memory":
            where = self.host
        else:
            nodes = self.nodes or ((self.host, self.port),)
            where = user + ",".join(map(address_of, *zip(*nodes, strict=True)))
            where += f"/{quote(self.master)}" if self.master else ""
        db = f"/{self.db}" if self.db and self.scheme != "unix" else ""
        ns = f"?ns={self.namespace}" if self.namespace != DEFAULT_NAMESPACE else ""
        return f"{self.scheme}://{where}{db}{ns}"


def address_of(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _nodes_of(netloc: str, scheme: str) -> tuple[tuple[str, int], ...]:
    """Return the hosts and ports of an address that may name several; none of any other."""
    if scheme not in (*SENTINEL_SCHEMES, *CLUSTER_SCHEMES):
        return ()
    usual = DEFAULT_SENTINEL_PORT if scheme in SENTINEL_SCHEMES else DEFAULT_PORT
    found = []
    for number, node in enumerate(netloc.rpartition("@")[2].split(","), 1):
        parts = urlsplit(f"//{node.strip()}")
        try:
            host, port = parts.hostname, parts.port or usual
        except ValueError:
            host, port = None, usual
        if not host:
            raise ValueError(
                f"broker address whose node {number} is no host and port: write host:port,host:port"
            )
        found.append((host, port))
    return tuple(found)


def _from_environment(name: str) -> str | None:
    """Return the password in a variable, or in the file that ``<name>_FILE`` names."""
    if password := os.environ.get(name):
        return password
    if path := os.environ.get(f"{name}_FILE"):
        return read_password(path, f"{name}_FILE")
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
