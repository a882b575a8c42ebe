"""The embedded broker: a Valkey or Redis server process that needs no installation.

:class:`EmbeddedBroker` runs one until it is stopped (``agentlace broker``, tests).
:func:`ensure` starts one that belongs to nobody, for a server that finds none on its own
machine: :mod:`agentlace.transport.supervisor`, a small process of its own, keeps it until its
last client has been gone for a while.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from typing import IO

from agentlace.config import BrokerURL
from agentlace.errors import BrokerUnreachable
from agentlace.transport.connection import Broker
from agentlace.transport.server_process import POLL_S, START_TIMEOUT_S, EmbeddedBroker, Settings

__all__ = ["EmbeddedBroker", "Settings", "ensure"]

log = logging.getLogger(__name__)

LINGER_S = 30.0
"""An embedded broker that belongs to nobody ends so long after its last client has gone."""
JOIN_TIMEOUT_S = 2.0
"""So long after it lost the race for the port, the winner's broker must answer."""


def ensure(url: BrokerURL) -> None:
    """Make sure that a broker answers at ``url``, starting the embedded one on this machine.

    Blocks until a broker answers, at most START_TIMEOUT_S.

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
    linger_s = float(os.environ.get("AGENTLACE_EMBEDDED_LINGER_S", LINGER_S))
    with tempfile.TemporaryFile() as output:
        settings = Settings(port=url.port, password=url.password)
        supervisor = _start_supervisor(settings, linger_s, output)
        _wait_for_answer(url, supervisor, output)
    if supervisor.returncode is None:
        text = "no broker at %s: started the embedded one (it ends %g s after its last client)"
        log.warning(text, url, linger_s)


def _ping(url: BrokerURL) -> None:
    with contextlib.closing(Broker(url).channel()) as channel:
        channel.call("PING")


def _start_supervisor(
    settings: Settings, linger_s: float, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "agentlace.transport.supervisor"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert supervisor.stdin is not None
    with contextlib.suppress(BrokenPipeError), supervisor.stdin as stdin:
        stdin.write(json.dumps([asdict(settings), linger_s]).encode())
    # It outlives this process; if it ends before, it must not remain as a zombie.
    threading.Thread(target=supervisor.wait, name="reap supervisor", daemon=True).start()
    return supervisor


def _wait_for_answer(
    url: BrokerURL, supervisor: subprocess.Popen[bytes], output: IO[bytes]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    lost = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if supervisor.wait(POLL_S) and not lost:
                lost, deadline = True, time.monotonic() + JOIN_TIMEOUT_S
        try:
            return _ping(url)
        except BrokerUnreachable as error:
            if time.monotonic() > deadline:
                output.seek(0)
                said = output.read().decode(errors="replace").strip() or "no output"
                reason = f"the embedded broker did not start: {said[-500:]}"
                raise BrokerUnreachable(str(url), reason) from error
