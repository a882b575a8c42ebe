"""The embedded broker: a Valkey or Redis server process that needs no installation.

:class:`EmbeddedBroker` runs one until it is stopped (``agentlace broker``, tests).
:func:`ensure` starts one that belongs to nobody, for a server that finds none on its own
machine: :mod:`agentlace.transport.supervisor`, a small process of its own, keeps it until its
last client has been gone for a while.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO

from agentlace.config import BadSetting, BrokerURL
from agentlace.errors import AgentlaceError, BrokerUnreachable
from agentlace.logs import about
from agentlace.progress import Pace
from agentlace.transport.connection import Broker
from agentlace.transport.server_process import (
    POLL_S,
    Settings,
    failure,
    find_server,
    hold,
    leash,
    runtime_directory,
)

__all__ = ["EmbeddedBroker", "Settings", "ensure"]

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 1.0
LINGER_S = 30.0
"""An embedded broker that belongs to nobody ends so long after its last client has gone."""
JOIN_TIMEOUT_S = 2.0
"""So long after it lost the race for the port, the winner's broker must answer."""
OUTPUT_BYTES = 1 << 20
"""More than a server writes before it is ready."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
"""The server is built with the C library's allocator, which would map each large message's memory
anew and give it back at once: page faults then cost more than the message (two to three times the
time from 256 KiB on). Other allocators ignore this."""
HINT = "mend that, or point AGENTLACE_BROKER at a running broker"


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
        return runtime_directory() / f"{self.settings.name}.log"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> EmbeddedBroker:
        """Start the server and wait until it answers (loading a large file takes its time).

        Raises:
            BadSetting: a setting cannot be used, the address is taken, or another broker keeps
                its data in the directory.
            BrokerUnreachable: it did not start; the reason is its log's last line.
            MissingExtra: there is no server to start.
        """
        self.settings.check()
        command = [*leash(), find_server(), "-"]
        with hold(self.settings.directory) as lock:
            self._start(command, lock, timeout_s)
        return self

    def _start(self, command: list[str], lock: int | None, timeout_s: float) -> None:
        number, path = tempfile.mkstemp(".log", f"{self.settings.name}.", runtime_directory())
        self._output = Path(path)
        try:
            with open(number, "w+b") as output:
                self._launch(command, output, lock)
                self._wait_until_ready(output.fileno(), time.monotonic() + timeout_s)
            self._take_over_log()
        except BaseException:
            self.stop()
            self._output.unlink(missing_ok=True)
            raise

    def _launch(self, command: list[str], output: object, lock: int | None) -> None:
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
            env={**os.environ, **MALLOC},
        )
        if lock is not None:
            os.pwrite(
                lock, f"process {process.pid}, port {self.settings.port}".ljust(80).encode(), 0
            )
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(self.settings.config().encode())

    def _take_over_log(self) -> None:
        """Give the log its lasting name, and remove those of starters that were killed.

        The port is ours, so whoever else has one waits in vain, and reads it by its descriptor.
        """
        with contextlib.suppress(FileNotFoundError):
            self._output = self._output.replace(self.log_path)
        for left in runtime_directory().glob(f"{glob.escape(self.settings.name)}.*.log"):
            left.unlink(missing_ok=True)

    def _wait_until_ready(self, output: int, deadline: float) -> None:
        broker, pace, loaded = Broker(self.settings.url), Pace(), ""
        while True:
            status = self.wait(POLL_S)
            if status is not None:
                said = os.pread(output, OUTPUT_BYTES, 0).decode(errors="replace")
                raise failure(self.settings, said)
            try:
                with contextlib.closing(broker.channel(ANSWER_TIMEOUT_S)) as channel:
                    info = bytes(channel.call("INFO")).decode()
                    if f"process_id:{self.pid}\r\n" in info:
                        loaded = _loaded(info)
                        channel.call("PING")  # refused while it loads
                        return
                reason = "another server answers there"
            except AgentlaceError as error:
                reason = getattr(error, "reason", str(error))
            if pace.is_due():
                text = "the broker at %s is being started: %s%.0f s so far"
                log.warning(text, broker.url, loaded, pace.elapsed_s, extra=about())
            if time.monotonic() > deadline and not reason.startswith("LOADING"):
                raise BrokerUnreachable(str(broker.url), f"not ready: {reason}", hint="")

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


def _loaded(info: str) -> str:
    """Return how much of its data a server has loaded, from what it says of itself."""
    share = re.search(r"^loading_loaded_perc:([\d.]+)", info, re.MULTILINE)
    return f"{share[1]} % of its data is loaded, " if share else ""


def ensure(url: BrokerURL) -> None:
    """Make sure that a broker answers at ``url``, starting the embedded one on this machine.

    Blocks until a broker answers, at most START_TIMEOUT_S, and STOP_TIMEOUT_S more to end one that
    was started and is of no use here: whatever this raises, nothing that it started is left.

    Raises:
        BrokerUnreachable: none answers, and it is not ours to start.
        BrokerAuthFailed: one answers and refuses the password.
    """
    try:
        _ping(url)
        return
    except BrokerUnreachable as error:
        if not url.is_local or "refused" not in error.reason:
            raise
    settings = _settings_for(url)
    linger_s = float(os.environ.get("AGENTLACE_EMBEDDED_LINGER_S", LINGER_S))
    with tempfile.TemporaryFile() as output:
        supervisor = _start_supervisor(output)
        try:
            _tell(supervisor, settings, linger_s)
            _wait_for_answer(url, supervisor, output)
        except BaseException:
            _end(supervisor)
            raise
    if supervisor.returncode is None:
        text = "no broker at %s: started the embedded one (it ends %g s after its last client)"
        log.warning(text, url, linger_s, extra=about(namespace=url.namespace))


def _settings_for(url: BrokerURL) -> Settings:
    """Return the settings of a broker that will answer at ``url``."""
    host = "127.0.0.1" if url.host == "localhost" else url.host
    settings = Settings(host=host, port=url.port, password=url.password, username=url.username)
    try:
        settings.check()
    except BadSetting as error:
        reason = f"the embedded one cannot start: {error}"
        raise BrokerUnreachable(str(url), reason, HINT) from error
    return settings


def _ping(url: BrokerURL) -> None:
    with contextlib.closing(Broker(url).channel()) as channel:
        channel.call("PING")


def _start_supervisor(output: IO[bytes]) -> subprocess.Popen[bytes]:
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "agentlace.transport.supervisor"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # It outlives this process; if it ends before, it must not remain as a zombie.
    threading.Thread(target=supervisor.wait, name="reap supervisor", daemon=True).start()
    return supervisor


def _tell(supervisor: subprocess.Popen[bytes], settings: Settings, linger_s: float) -> None:
    assert supervisor.stdin is not None
    with contextlib.suppress(BrokenPipeError), supervisor.stdin as stdin:
        stdin.write(json.dumps([asdict(settings), linger_s]).encode())


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """End the supervisor, which ends its broker, if they run."""
    supervisor.terminate()
    try:
        supervisor.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def _wait_for_answer(
    url: BrokerURL, supervisor: subprocess.Popen[bytes], output: IO[bytes]
) -> None:
    deadline, pace = time.monotonic() + START_TIMEOUT_S, Pace()
    lost = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if supervisor.wait(POLL_S) and not lost:
                lost, deadline = True, time.monotonic() + JOIN_TIMEOUT_S
        try:
            return _ping(url)
        except BrokerUnreachable as error:
            if pace.is_due():
                text = "no broker at %s: the embedded one is being started, %.0f s so far"
                log.warning(text, url, pace.elapsed_s, extra=about(error=error))
            if time.monotonic() > deadline:
                output.seek(0)
                said = output.read().decode(errors="replace").strip() or "no output"
                reason = f"the embedded one did not start: {said[-500:]}"
                raise BrokerUnreachable(str(url), reason, HINT) from error
