"""Real brokers for the tests: Valkey over TCP, its Unix socket, a cluster of it; in-process."""

import signal
import uuid

import pytest

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port
from tests.server_groups import Cluster

# A shell lets its background jobs ignore Ctrl-C, and they their children: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


FIRST = ("tests/test_example_async.py", "tests/fuzz/", "tests/chaos/", "tests/cli/test_broker.py")
"""These take longest, so they begin first: else the last worker would have them for itself."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(scope="session")
def embedded_broker():
    """One broker process for the whole session; tests keep apart by namespace."""
    with EmbeddedBroker(Settings(port=free_port(), maxmemory="1gb")) as broker:
        yield broker


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory):
    """Three masters for the whole session; tests keep apart by namespace."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def namespace():
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def broker_url(embedded_broker, namespace):
    """Address of a running broker, with a namespace of this test's own."""
    return f"redis://127.0.0.1:{embedded_broker.settings.port}?ns={namespace}"


@pytest.fixture(params=["redis", "unix", "memory"])
def any_broker_url(request, embedded_broker, namespace):
    """Addresses of every kind of broker, one test run each."""
    return broker_url_of(request, embedded_broker, namespace)


def broker_url_of(request, embedded_broker, namespace):
    """Return the address of the kind of broker that a fixture's parameter names."""
    if request.param == "memory":
        pytest.importorskip("fakeredis", reason="memory:// needs the extra 'memory'")
        return f"memory://{namespace}"
    if request.param == "unix":
        return f"unix://{embedded_broker.settings.socket_path}?ns={namespace}"
    if request.param == "cluster":
        return f"{request.getfixturevalue('session_cluster').url}?ns={namespace}"
    return request.getfixturevalue("broker_url")


@pytest.fixture
def broker_environment(broker_url, monkeypatch):
    """Point programs that name no broker at the test's broker."""
    monkeypatch.setenv("AGENTLACE_BROKER", broker_url)
    return broker_url


@pytest.fixture
def broker(any_broker_url):
    return Broker(BrokerURL.parse(any_broker_url))
