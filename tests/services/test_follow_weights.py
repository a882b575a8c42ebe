"""An inference server that follows a trainer: which network answers, and what is said of it."""

import contextlib
import itertools
import threading

import numpy as np
import pytest

from agentlace import (
    InferenceClient,
    InferenceServer,
    RemoteError,
    TrainerConfig,
    TrainerServer,
)
from agentlace.config import BadSetting, BrokerURL
from agentlace.inference import PolicyVersion
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys

from .support import InThread, Log, Program, wait_until

PORT = 5600
LARGE = 40_000
"""Numbers of a network that does not ride in the notification."""


def network(value, size=4):
    return {"bias": np.full(size, value, np.float32)}


def add(payload, weights):
    return payload + weights["bias"][0]


@pytest.fixture
def make_trainer(running, broker_url):
    def make_trainer(port=5555):
        trainer = running(TrainerServer(TrainerConfig(port), broker=broker_url))
        trainer.start(threaded=True)
        return trainer

    return make_trainer


@pytest.fixture
def make_server(running, broker_url):
    def make_server(fn=add, follow_weights="trainer", start=True, uses_weights=True, **kwargs):
        kwargs = {"broker": broker_url, "follow_weights": follow_weights, **kwargs}
        server = running(InferenceServer(PORT, **kwargs))
        server.register_interface("policy", fn, uses_weights=uses_weights)
        if start:
            server.start(threaded=True)
        return server

    return make_server


@pytest.fixture
def client(running, broker_url):
    return running(
        InferenceClient("localhost", PORT, broker=broker_url, timeout_ms=5000, strict=True)
    )


def call(client):
    """Return the network that answers and what it answers; None before there is one."""
    try:
        answer = client.call("policy", np.float32(0), full=True)
    except RemoteError as error:
        assert error.type == "NotReady"
        return None
    return answer.policy.network, answer.value


def wait_for_network(client, number):
    """Call until a network of this number answers; returns its value."""
    return wait_until(
        lambda: (found := call(client)) and found[0] == number and found,
        what=f"an answer of network {number}",
    )[1]


@pytest.mark.parametrize("size", [4, LARGE], ids=["inline", "in keys"])
def test_the_newest_network_answers_and_is_named(make_trainer, make_server, client, size):
    trainer = make_trainer()
    trainer.publish_network(network(1, size))
    make_server()
    assert wait_for_network(client, 1) == 1
    trainer.publish_network(network(2, size))
    assert wait_for_network(client, 2) == 2
    policy = client.last_policy_version
    assert policy[:3] == ("policy", "1", 2) and policy.trainer_began_ms > 0
    assert str(policy) == "policy@1 network 2"


def test_a_started_server_has_the_network_that_the_broker_has(make_trainer, make_server, client):
    trainer = make_trainer()
    trainer.publish_network(network(7, LARGE))
    with make_server():
        assert wait_for_network(client, 1) == 7
    server = make_server()
    assert call(client) == (1, 7)  # the first call already
    server.stop()
    server.start(threaded=True)
    assert call(client) == (1, 7)


@pytest.mark.parametrize(
    ("follow", "port"), [("trainer", 5555), ("trainer:5601", 5601), (5602, 5602)]
)
def test_which_trainer_is_followed(make_trainer, make_server, client, follow, port):
    make_trainer(port).publish_network(network(port))
    make_server(follow_weights=follow)
    assert wait_for_network(client, 1) == port


@pytest.mark.parametrize("follow", ["learner", "trainer:", "trainer:x", "", -1, 1.5, True])
def test_what_names_no_trainer_is_refused(follow, broker_url):
    with pytest.raises(BadSetting, match="'trainer:5555'"):
        InferenceServer(PORT, broker=broker_url, follow_weights=follow)


def test_an_interface_cannot_use_weights_of_a_server_without(broker_url):
    server = InferenceServer(PORT, broker=broker_url)
    with pytest.raises(BadSetting, match="follow_weights='trainer'"):
        server.register_interface("policy", add, uses_weights=True)


def test_before_the_first_network_callers_are_told(make_trainer, make_server, client):
    server = make_server()
    server.register_interface("echo", lambda payload: payload)
    with pytest.raises(RemoteError, match=r"policy@1 waits for its first network: trainer:5555"):
        client.call("policy", 0)
    assert client.last_error.type == "NotReady"
    assert client.call("echo", 1) == 1
    assert client.last_policy_version == PolicyVersion("echo", "1")
    make_trainer().publish_network(network(3))
    assert wait_for_network(client, 1) == 3


def test_batches_work_with_one_network_each(make_trainer, running, broker_url, client):
    def fn(payload, weights):
        return payload + weights["bias"][0]

    trainer = make_trainer()
    server = running(InferenceServer(PORT, broker=broker_url, follow_weights="trainer"))
    server.register_interface("policy", fn, batch=True, uses_weights=True, pad_to=(4, 32))
    server.start(threaded=True)
    assert call(client) is None
    lines = [
        running(InferenceClient("x", PORT, broker=broker_url, timeout_ms=5000)) for _ in range(4)
    ]
    done = threading.Event()

    def ask(line):
        found = []
        while not done.is_set():
            if (answer := line.call("policy", np.float32(0), full=True)) is not None:
                found.append((answer.policy.network, float(answer.value)))
        return found

    threads = [InThread(lambda line=line: ask(line)) for line in lines]
    try:
        for number in range(1, 30):
            trainer.publish_network(network(number))
            wait_for_network(client, number)
    finally:
        done.set()
    found = [pair for thread in threads for pair in thread.result()]
    assert found and all(number == value for number, value in found)


def test_weights_to_begin_with_answer_until_the_trainers_come(make_trainer, make_server, client):
    make_server(weights=network(9))
    assert client.call("policy", np.float32(0)) == 9
    assert client.last_policy_version == PolicyVersion("policy", "1")
    make_trainer().publish_network(network(4))
    assert wait_for_network(client, 1) == 4


def test_weights_without_a_trainer(make_server, client):
    make_server(follow_weights=None, weights=network(9))
    assert client.call("policy", np.float32(0)) == 9


def test_a_network_that_does_not_fit_is_refused(make_trainer, make_server, client):
    server, trainer = make_server(weights=network(9)), make_trainer()
    trainer.publish_network(network(1, size=5))
    wait_until(lambda: server.refused_network, what="the refusal")
    assert "bias: float32 of shape (5,)" in str(server.refused_network)
    assert client.call("policy", np.float32(0)) == 9
    trainer.publish_network(network(2))
    assert wait_for_network(client, 2) == 2
    assert server.refused_network is None


def test_networks_are_prepared_once_beside_the_calls(make_trainer, make_server, client):
    prepared, main = Log(), Log()

    def prepare(weights):
        prepared(threading.get_ident())
        return {"bias": weights["bias"] * 10}

    def fn(payload, weights):
        main(threading.get_ident())
        return add(payload, weights)

    trainer = make_trainer()
    make_server(fn, prepare_weights=prepare)
    trainer.publish_network(network(1))
    assert wait_for_network(client, 1) == 10
    for _ in range(3):
        client.call("policy", np.float32(0))
    assert len(prepared) == 1 and prepared[0] not in main


def test_a_preparation_that_fails_leaves_the_network_before(make_trainer, make_server, client):
    def prepare(weights):
        if weights["bias"][0] == 2:
            raise ValueError("out of memory")
        return weights

    trainer = make_trainer()
    trainer.publish_network(network(1))
    server = make_server(prepare_weights=prepare)
    assert wait_for_network(client, 1) == 1
    trainer.publish_network(network(2))
    wait_until(lambda: server._weights._receiver.received == 2)
    assert client.call("policy", np.float32(0)) == 1
    assert client.last_policy_version.network == 1
    trainer.publish_network(network(3))
    assert wait_for_network(client, 3) == 3


def test_a_callback_is_told_between_two_calls(make_trainer, make_server, client):
    """A stateful policy never changes during a call, and each answer names what made it."""
    state, inside = {"value": 0, "calls": 0}, Log()

    def load(weights):
        inside(state["calls"])
        state["value"] = int(weights["bias"][0])

    def fn(payload):
        state["calls"] += 1
        before = state["value"]
        opened.wait(0.001)
        state["calls"] -= 1
        return before, state["value"]

    opened, trainer = threading.Event(), make_trainer()
    server = make_server(fn, uses_weights=False, start=False)
    server.on_weights(load)
    server.start(threaded=True)
    assert client.call("policy", None) == (0, 0)
    assert client.last_policy_version.network is None

    numbers, done = itertools.count(1), threading.Event()

    def publish():
        while not done.wait(0.002):
            trainer.publish_network(network(next(numbers)))

    publishing = InThread(publish)
    seen = set()

    def has_seen_many():
        before, after = client.call("policy", None)
        assert before == after == (client.last_policy_version.network or 0)
        seen.add(before)
        return len(seen) > 10

    try:
        wait_until(has_seen_many, what="ten networks")
    finally:
        done.set()
    publishing.result()
    assert set(inside) == {0}


def test_a_callback_that_raises_keeps_the_network_before(make_trainer, make_server, client, caplog):
    def load(weights):
        if weights["bias"][0] == 2:
            raise ValueError("this network is no good")

    trainer = make_trainer()
    trainer.publish_network(network(1))
    server = make_server(start=False)
    server.on_weights(load)
    server.start(threaded=True)
    assert wait_for_network(client, 1) == 1
    trainer.publish_network(network(2))
    wait_until(lambda: client.call("policy", np.float32(0)) and "no good" in caplog.text)
    assert client.call("policy", np.float32(0)) == 1
    assert client.last_policy_version.network == 1
    trainer.publish_network(network(3))
    assert wait_for_network(client, 3) == 3


TRAINER = """
import sys, threading
import numpy as np
from agentlace import TrainerConfig, TrainerServer
with TrainerServer(TrainerConfig()) as trainer:
    trainer.start(threaded=True)
    print("serving", flush=True)
    for line in sys.stdin:
        trainer.publish_network({"bias": np.full(4, float(line), np.float32)})
"""


def test_a_trainer_that_is_killed_and_comes_back(make_server, client, broker_url):
    """Its successor's first network is newer, though its number is lower."""
    with Program(TRAINER, broker=broker_url) as trainer:
        trainer.line("serving")
        for value in (1, 2, 3):
            trainer.tell(str(value))
        server = make_server()
        assert wait_for_network(client, 3) == 3
        old = client.last_policy_version
        trainer.kill()
    assert client.call("policy", np.float32(0)) == 3
    server.stop()
    server.start(threaded=True)
    assert client.call("policy", np.float32(0)) == 3  # what the broker has will do
    with Program(TRAINER, broker=broker_url) as trainer:
        trainer.line("serving")
        trainer.tell("10")
        wait_until(lambda: client.call("policy", np.float32(0)) == 10)
    new = client.last_policy_version
    assert new.trainer_began_ms > old.trainer_began_ms and new.network == 1


def test_what_a_trainer_before_the_present_one_has_left_does_not_answer(
    make_trainer, make_server, client
):
    with make_trainer() as before:
        before.publish_network(network(1))
        with make_server():
            assert wait_for_network(client, 1) == 1
    trainer = make_trainer()
    make_server()
    with pytest.raises(RemoteError, match="NotReady"):
        client.call("policy", 0)
    trainer.publish_network(network(2))
    assert wait_for_network(client, 1) == 2


def test_the_server_tells_which_network_it_has(make_trainer, make_server, client):
    make_trainer().publish_network(network(1))
    server = make_server()
    wait_for_network(client, 1)
    numbers = {sample.name: sample.value for sample in server._measure()}
    assert numbers["network_version"] == 1 and numbers["network_age_seconds"] >= 0


def test_a_trainer_whose_keys_are_damaged_keeps_no_server_from_starting(
    make_trainer, make_server, client, broker_url, caplog
):
    broker = Broker(BrokerURL.parse(broker_url))
    keys = ServiceKeys(broker.url.namespace, "trainer", 5555)
    with contextlib.closing(broker.channel()) as channel:
        channel.call("SET", keys.weights, b"no manifest")
    make_server(weights=network(9))
    assert "damaged" in caplog.text or "truncated" in caplog.text
    assert call(client) == (None, 9)
    trainer = make_trainer()
    trainer.publish_network(network(1))
    assert wait_for_network(client, 1) == 1
