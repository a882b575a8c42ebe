import contextlib

import pytest

from agentlace.config import BrokerURL
from agentlace.operating import take
from agentlace.transport.connection import Broker
from tests.services.support import wait_until


@pytest.fixture
def running():
    """What is entered into this stack is stopped when the test ends, the latest first."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def look(broker_url):
    """Take a snapshot."""
    broker = Broker(BrokerURL.parse(broker_url))
    with contextlib.closing(broker.channel()) as channel:
        yield lambda: take(channel, broker.url.namespace)


@pytest.fixture
def found(look):
    """Return the first snapshot that fulfils a condition: heartbeats come once a second."""

    def found(condition, what):
        last = []

        def looked():
            last[:] = [look()]
            return condition(last[0])

        wait_until(looked, what=what)
        return last[0]

    return found
