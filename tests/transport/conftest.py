import contextlib

import pytest
from stream_support import STORE, Actor, Recorder
from transport_support import Proxy
from weights_support import Player

from agentlace.config import BrokerURL
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.weights_publisher import WeightsPublisher
from tests.conftest import broker_url_of
from tests.ports import free_port


@pytest.fixture(params=["redis", "unix", "memory", "cluster"])
def any_broker_url(request, embedded_broker, namespace):
    """Addresses of every kind of broker, one test run each."""
    return broker_url_of(request, embedded_broker, namespace)


@pytest.fixture
def channel(broker):
    with contextlib.closing(broker.channel()) as channel:
        yield channel


@pytest.fixture
def keys(namespace):
    return ServiceKeys(namespace, "trainer", 5555)


@pytest.fixture
def own_broker(tmp_path):
    """A broker of the test's own, which it may kill, fill and configure; it keeps its data."""
    with EmbeddedBroker(Settings(port=free_port(), directory=str(tmp_path / "data"))) as embedded:
        yield embedded


@pytest.fixture
def proxy(broker_url):
    with Proxy(BrokerURL.parse(broker_url).port) as proxy:
        yield proxy


@pytest.fixture
def proxy_url(proxy, namespace):
    return f"redis://127.0.0.1:{proxy.port}?ns={namespace}"


@pytest.fixture
def actor(broker, keys):
    with contextlib.ExitStack() as stack:

        def make(name="robot", at=None, **kwargs):
            actor = Actor(at or broker, keys, name, **kwargs)
            stack.callback(actor.close)
            actor.announce()
            return actor

        yield make


@pytest.fixture
def record(broker, keys):
    """Return a function that makes recorders, and starts them unless told not to."""
    with contextlib.ExitStack() as stack:

        def record(name="trainer", positions=None, at=None, start=True, **kwargs):
            recorder = Recorder(at or broker, keys, name, positions, **kwargs)
            stack.callback(recorder.consumer.stop)
            stack.callback(recorder.wait.set)
            if start:
                recorder.consumer.start()
            return recorder

        yield record


@pytest.fixture
def store(keys):
    return keys.store(STORE)


@pytest.fixture
def trainer(broker, keys):
    """Return a function that makes publishers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def trainer(at=None):
            publisher = WeightsPublisher(at or broker, keys)
            stack.callback(publisher.stop)
            return publisher

        yield trainer


@pytest.fixture
def player(broker, keys):
    with contextlib.ExitStack() as stack:

        def player(at=None):
            player = Player(at or broker, keys)
            stack.callback(player.receiver.stop)
            player.receiver.start()
            return player

        yield player
