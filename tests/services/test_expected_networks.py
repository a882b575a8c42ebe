"""A network that does not fit its actor never reaches it; the actor stays on the one before."""

import numpy as np
import pytest

from agentlace.config import TrainerConfig
from agentlace.errors import Closed, SchemaMismatch
from agentlace.trainer import TrainerClient, TrainerServer, TrainerSMInterface
from agentlace.transport.weights import INLINE_BYTES

from .support import Log, wait_until

TRAINER = TrainerConfig(5555)


def network(width=3, dtype=np.float32, size=0, **more):
    return {"actor": {"kernel": np.zeros((2, width), dtype), "big": np.zeros(size)}, **more}


def make_pair(running, url):
    server = running(TrainerServer(TRAINER, broker=url))
    server.start(threaded=True)
    return server, running(TrainerClient("arm", "x", TRAINER, broker=url))


@pytest.mark.parametrize("size", [0, INLINE_BYTES])
def test_what_does_not_fit_is_refused_before_the_callback(running, any_broker_url, size, caplog):
    server, client = make_pair(running, any_broker_url)
    received = Log()
    client.recv_network_callback(received, expect=network(size=size))
    server.publish_network(network(size=size))
    received.wait(1)
    assert (client.policy_version, client.refused_network) == (1, None)
    for bad, path in (
        (network(4, size=size), "actor/kernel"),
        (network(3, np.float64, size), "actor/kernel"),
        (network(3, size=size, critic=1), "critic"),
        ({"actor": {"kernel": np.zeros((2, 3), np.float32)}}, "actor/big"),
    ):
        server.publish_network(bad)
        wait_until(lambda path=path: getattr(client.refused_network, "path", "") == path)
        wait_until(lambda: client.last_error is client.refused_network)
        assert isinstance(client.last_error, SchemaMismatch)
        assert (client.policy_version, len(received)) == (1, 1)
    said = [record.message for record in caplog.records if "is refused" in record.message]
    assert len(said) == 1  # not one a version
    assert "the one before it stays: actor/kernel: float32 of shape (2, 4)" in said[0]
    server.publish_network(network(size=size))
    received.wait(2)
    assert client.refused_network is None
    assert client.policy_version == server.published_version == 6


def test_without_expecting_anything_every_network_comes(running, any_broker_url):
    server, client = make_pair(running, any_broker_url)
    received = Log()
    client.recv_network_callback(received)
    for i, tree in enumerate((network(3), network(4), [1], None)):
        server.publish_network(tree)
        received.wait(i + 1)
    assert client.refused_network is None


def test_a_refused_network_is_not_fetched_again(running, broker_url, caplog):
    server, client = make_pair(running, broker_url)
    client.recv_network_callback(Log(), expect=network())
    server.publish_network(network(4, size=INLINE_BYTES))
    wait_until(lambda: client.refused_network)
    (receiver,) = client._receivers
    before = receiver._fetcher._last_keys
    receiver._deliver(receiver._fetcher.newest())
    assert receiver._fetcher._last_keys is before
    assert receiver.received == 0


def test_each_callback_has_its_own_expectation(running, broker_url):
    server, client = make_pair(running, broker_url)
    narrow, wide = Log(), Log()
    client.recv_network_callback(narrow, expect=network(3))
    client.recv_network_callback(wide, expect=network(4))
    server.publish_network(network(4))
    wide.wait(1)
    wait_until(lambda: client.refused_network)
    assert not narrow


def test_what_is_expected_is_looked_at_first(running, broker_url):
    _, client = make_pair(running, broker_url)
    endless = []
    endless.append(endless)
    with pytest.raises(SchemaMismatch, match="contains itself"):
        client.recv_network_callback(Log(), expect=endless)
    client.stop()
    with pytest.raises(Closed):
        client.recv_network_callback(Log(), expect=network())


def test_the_same_within_one_process():
    both, received = TrainerSMInterface(), Log()
    both.recv_network_callback(received, expect=network())
    both.publish_network(network())
    both.publish_network(network(4))
    assert both.refused_network.path == "actor/kernel"
    assert (both.policy_version, both.published_version, len(received)) == (1, 2, 1)
    both.publish_network(network())
    assert (both.policy_version, both.refused_network, len(received)) == (3, None, 2)
