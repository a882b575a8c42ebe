"""The inference service, as the contract states it, over every kind of broker."""

import threading

import numpy as np
import pytest

from agentlace import (
    BrokerUnreachable,
    EncodeError,
    InferenceClient,
    InferenceServer,
    RemoteError,
    RequestTimeout,
)
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

from .support import InThread, Log, assert_same, wait_until

PORT = 6379
OBSERVATION = {
    "wrist": np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8),
    "state": np.arange(8, dtype=np.float32),
    "prompt": "pick up the cube",
}


@pytest.fixture
def serve(running, any_broker_url):
    def serve(**interfaces):
        server = running(InferenceServer(port_num=PORT, broker=any_broker_url))
        for name, function in interfaces.items():
            server.register_interface(name, function)
        server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def client(running, any_broker_url):
    return running(InferenceClient("localhost", PORT, broker=any_broker_url, timeout_ms=5000))


def test_interfaces_are_listed_and_called(serve, client):
    serve(echo=lambda payload: payload, mean=lambda payload: {"mean": payload["state"].mean()})
    assert client.interfaces() == {"echo", "mean"}
    assert_same(client.call("echo", OBSERVATION), OBSERVATION)
    assert_same(client.call("mean", OBSERVATION), {"mean": np.float32(3.5)})


@pytest.mark.parametrize("payload", [None, 3, [1, 2], (np.arange(3),), {}], ids=repr)
def test_payloads_and_replies_are_any_trees(serve, client, payload):
    serve(echo=lambda payload: [payload])
    assert_same(client.call("echo", payload), [payload])


def test_an_unknown_interface_says_so_and_names_the_known_ones(serve, client):
    serve(face_reg=dict, voice_reg=dict)
    answer = client.call("lip_reg", {})
    assert answer["success"] is False
    for name in ("lip_reg", "face_reg", "voice_reg"):
        assert name in answer["message"]
    assert client.last_error is None


def test_an_interface_may_be_added_while_the_server_runs(serve, client):
    server = serve(one=lambda _: 1)
    server.register_interface("two", lambda _: 2)
    assert client.interfaces() == {"one", "two"}
    assert client.call("two", None) == 2


def test_a_client_needs_no_server_yet(serve, client):
    client.timeout_ms = 100
    assert client.interfaces() == set()
    assert client.call("echo", {}) is None
    assert "inference:6379" in str(client.last_error) and "never seen" in str(client.last_error)
    serve(echo=lambda payload: payload)
    client.timeout_ms = 5000
    assert client.interfaces() == {"echo"}
    assert client.last_error is None


def test_a_client_needs_no_broker_yet(running, caplog):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    client = running(InferenceClient("localhost", PORT, broker=url, timeout_ms=300))
    assert "agentlace broker" in caplog.text
    assert client.interfaces() == set()
    assert isinstance(client.last_error, BrokerUnreachable)
    running(EmbeddedBroker(Settings(port=port)))
    server = running(InferenceServer(PORT, broker=url))
    server.register_interface("echo", lambda payload: payload)
    server.start(threaded=True)
    assert wait_until(lambda: client.call("echo", "hello")) == "hello"


def test_a_raising_interface_gives_none_and_the_reason(serve, client):
    serve(fail=lambda payload: payload["missing"], echo=lambda payload: payload)
    assert client.call("fail", {}) is None
    assert isinstance(client.last_error, RemoteError) and client.last_error.type == "KeyError"
    assert client.call("echo", 1) == 1


def test_a_slow_interface_gives_none_within_the_timeout(serve, client):
    opened = threading.Event()
    serve(slow=lambda payload: opened.wait(20), echo=lambda payload: payload)
    client.timeout_ms = 100
    assert client.call("slow", None) is None
    assert isinstance(client.last_error, RequestTimeout)
    opened.set()
    client.timeout_ms = 5000
    assert client.call("echo", "next") == "next"


def test_a_payload_that_may_not_travel_raises(serve, client):
    serve(echo=lambda payload: payload)
    with pytest.raises(EncodeError) as caught:
        client.call("echo", {"model": object()})
    assert caught.value.path == "model"


def test_strict_raises(serve, running, any_broker_url):
    serve(fail=lambda payload: 1 / 0)
    strict = running(InferenceClient("localhost", PORT, broker=any_broker_url, strict=True))
    with pytest.raises(RemoteError, match="division by zero"):
        strict.call("fail", None)


def test_two_servers_share_the_calls_and_one_suffices(serve, running, any_broker_url):
    """Both must be busy at once for the four calls to end: one server alone would not do."""
    together = threading.Barrier(2)
    used = Log()

    def predict(name):
        def answer(payload):
            used(name)
            if payload == "together":
                together.wait(10)
            return payload

        return answer

    first, _ = serve(predict=predict("first")), serve(predict=predict("second"))
    args = dict(broker=any_broker_url, timeout_ms=15_000)
    clients = [running(InferenceClient("localhost", PORT, **args)) for _ in range(2)]
    for _ in range(2):
        calls = [InThread(lambda c=client: c.call("predict", "together")) for client in clients]
        assert [call.result() for call in calls] == ["together"] * 2
    assert sorted(used) == ["first"] * 2 + ["second"] * 2
    first.stop()
    assert [clients[0].call("predict", i) for i in range(10)] == list(range(10))
    assert used[4:] == ["second"] * 10


def test_start_blocks_until_stop_and_may_be_called_again(running, any_broker_url, client):
    server = running(InferenceServer(PORT, broker=any_broker_url))
    server.register_interface("echo", lambda payload: payload)
    for i in range(2):
        serving = InThread(server.start)
        assert wait_until(lambda: client.interfaces()) == {"echo"}
        assert client.call("echo", i) == i
        server.stop()
        serving.result(timeout_s=5)
