"""Servers and clients that are replaced, stopped, forked, or end in the middle of a call."""

import contextlib
import threading

import numpy as np
import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    AgentlaceError,
    AlreadyServed,
    Closed,
    ConfigMismatch,
    InferenceClient,
    RemoteError,
    Retention,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    codec,
)
from agentlace.data import QueuedDataStore
from agentlace.transport.keys import LEASE_MS

from .support import InThread, Log, Program, wait_until

CONFIG = TrainerConfig(5588, 5589, request_types=["ping"])
ARM = ActionConfig(5590, ["move"], ["pose"], broadcast_port=5591)


@pytest.fixture
def serve(running, any_broker_url):
    def serve(config=CONFIG, store=None, **kwargs):
        server = running(TrainerServer(config, broker=any_broker_url, **kwargs))
        server.register_data_store("env", QueuedDataStore(1000) if store is None else store)
        server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(config=CONFIG, **kwargs):
        store = QueuedDataStore(1000)
        kwargs = {"timeout_ms": 5000, "broker": any_broker_url, **kwargs}
        client = running(TrainerClient("env", "localhost", config, store, **kwargs))
        client.store = store
        return client

    return connect


@pytest.fixture
def arm(running, any_broker_url):
    def arm(act=lambda key, payload: payload, **kwargs):
        server = running(ActionServer(ARM, None, act, broker=any_broker_url, **kwargs))
        server.start(threaded=True)
        return server

    return arm


@pytest.fixture
def hand(running, any_broker_url):
    def hand(**kwargs):
        kwargs = {"timeout_ms": 5000, "broker": any_broker_url, **kwargs}
        return running(ActionClient("localhost", ARM, **kwargs))

    return hand


def contents(server):
    return list(server.data_store("env")._data_queue)


def replace(server):
    """Give a server's lease to another one, as if it had stood still for longer than that."""
    other = '{"token": "other", "host": "elsewhere", "pid": 1}'
    with contextlib.closing(server._broker.channel()) as channel:
        channel.call("SET", server._keys.server, other, "PX", 10 * LEASE_MS)
    assert server._presence.replaced.wait(20)


def test_a_replaced_trainer_publishes_no_more(serve):
    server = serve()
    server.publish_network({"w": np.zeros(3)})
    replace(server)
    wait_until(lambda: server._publisher is None)
    for _ in range(2):
        with pytest.raises(AlreadyServed, match="elsewhere"):
            server.publish_network({"w": np.ones(3)})
    server.stop()


def test_a_replaced_robot_publishes_no_more(arm):
    server = arm()
    assert server.publish_obs({"pose": 1})
    replace(server)
    wait_until(lambda: server._ended is not None)
    assert server.publish_obs({"pose": 2}) is False
    server.stop()


def test_after_stop_nothing_is_published_until_start(serve, arm):
    server, robot = serve(), arm()
    server.stop()
    robot.stop()
    with pytest.raises(Closed, match="was stopped"):
        server.publish_network({"w": np.zeros(3)})
    assert robot.publish_obs({"pose": 1}) is False
    server.start(threaded=True)
    robot.start(threaded=True)
    assert server.publish_network({"w": np.zeros(3)}) == 1
    assert robot.publish_obs({"pose": 1})


def test_clients_that_were_stopped_say_so(serve, connect, arm, hand):
    serve()
    arm()
    client, player = connect(), hand()
    client.stop()
    player.stop()
    for call in (
        lambda: client.recv_network_callback(print),
        client.start_async_update,
        lambda: player.register_obs_callback(print),
    ):
        with pytest.raises(Closed, match="was stopped"):
            call()


def test_a_start_that_fails_leaves_nothing_running(running, any_broker_url):
    server = running(TrainerServer(CONFIG, broker=any_broker_url))
    names = iter(["env", object()])  # the second store cannot be consumed: its name is no text
    server.register_data_store(next(names), QueuedDataStore(10))
    server.register_data_store(next(names), QueuedDataStore(10))
    with pytest.raises(TypeError):
        server.start(threaded=True)
    assert not server.is_running and not server.counters()
    server._stores._filled.popitem()
    server.start(threaded=True)
    assert server.is_running


def test_a_network_published_from_a_callback_does_not_hold_up_stop(serve, connect):
    """The callback waits for what stop() holds, and stop() for the callback."""
    inside, go_on, outcome = threading.Event(), threading.Event(), Log()

    def on_data(name, payload):
        inside.set()
        assert go_on.wait(20)
        try:
            outcome(server.publish_network({"w": np.zeros(3)}))
        except Closed as error:
            outcome(error)

    server = serve(data_callback=on_data)
    client = connect()
    client.store.insert(1)
    assert client.update() and inside.wait(20)
    stopping = InThread(server.stop)
    wait_until(lambda: server._ended is not None)
    go_on.set()
    stopping.result()
    assert isinstance(outcome.wait(1)[0], Closed)


def test_stop_from_a_data_callback_gives_the_identity_free(serve, connect):
    stopped = threading.Event()

    def on_data(name, payload):
        server.stop()
        stopped.set()

    server = serve(data_callback=on_data)
    client = connect()
    client.store.insert(1)
    assert client.update() and stopped.wait(20)
    assert not server.is_running
    serve()


def test_an_observation_published_by_a_handler_does_not_hold_up_stop(arm, hand):
    inside, go_on = threading.Event(), threading.Event()

    def act(key, payload):
        inside.set()
        assert go_on.wait(20)
        server.publish_obs({"pose": 1})
        return payload

    server = arm(act)
    player = hand()
    acting = InThread(lambda: player.act("move", {"n": 1}))
    assert inside.wait(20)
    stopping = InThread(server.stop)
    wait_until(lambda: server._ended is not None)
    go_on.set()
    assert acting.result() == {"n": 1}
    stopping.result()
    assert server._broker is None and server._broadcast is None


def test_rows_are_not_read_twice_though_a_callback_outlives_stop(serve, connect, monkeypatch):
    monkeypatch.setattr("agentlace.transport.consumer.JOIN_TIMEOUT_S", 0.1)
    inside, go_on = threading.Event(), threading.Event()

    def on_data(name, payload):
        inside.set()
        assert go_on.wait(20)

    server = serve(data_callback=on_data)
    client = connect()
    client.store.insert("once")
    assert client.update() and inside.wait(20)
    server.stop()
    server.start(threaded=True)
    client.store.insert("again")
    assert client.update()
    go_on.set()
    wait_until(lambda: len(contents(server)) >= 2)
    assert contents(server) == ["once", "again"]


def test_sys_exit_in_a_handler_is_answered(arm, hand):
    def act(key, payload):
        raise SystemExit("enough")

    arm(act)
    player = hand(strict=True)
    for _ in range(2):
        with pytest.raises(RemoteError, match="SystemExit: enough"):
            player.act("move", {})


def test_sys_exit_in_a_data_callback_ends_nothing(serve, connect, caplog):
    def on_data(name, payload):
        raise SystemExit("enough")

    server = serve(data_callback=on_data)
    client = connect()
    for i in range(3):
        client.store.insert(i)
        assert client.update_datastore("env", -1, confirm_update=True)
    assert contents(server) == [0, 1, 2]
    assert "enough" in caplog.text


def test_a_server_restarted_with_another_config_is_noticed(serve, connect):
    server, client = serve(), connect()
    server.stop()
    serve(TrainerConfig(5588, 5589, request_types=["ping"], version="2.0"))
    wait_until(lambda: client._mismatch is not None)
    client.store.insert(1)
    for call in (lambda: client.request("ping", {}), client.update):
        with pytest.raises(ConfigMismatch, match=r"'version' differs: '0\.0\.2' here, '2\.0'"):
            call()


def test_the_last_update_is_not_counted_against_the_rate_limit(serve, connect):
    config = TrainerConfig(5588, 5589, request_types=["ping"], rate_limit=1)
    server = serve(config, request_callback=lambda type, payload: {})
    client = connect(config)
    client.start_async_update(interval=1000)
    assert client.get_server_last_update_id("env") == -1
    client._last_call = float("inf")  # as if another call had been made at this very moment
    client.store.batch_insert(list(range(50)))
    client.stop()
    wait_until(lambda: len(contents(server)) == 50)


def test_a_strict_client_updates_asynchronously_through_a_fault(serve, connect):
    server = serve()
    client = connect(strict=True)
    known, client._outboxes = client._outboxes, {}
    client.start_async_update(interval=0.02)
    client._outboxes = {"unknown": known["env"]}
    wait_until(lambda: client.last_error is not None)
    client._outboxes = known
    client.store.insert("after the fault")
    wait_until(lambda: contents(server) == ["after the fault"])


def test_what_is_given_twice_is_sent_from_both(serve, running, any_broker_url):
    server = serve()
    server.register_data_store("more", QueuedDataStore(10))
    one, two = QueuedDataStore(10), QueuedDataStore(10)
    client = running(
        TrainerClient("env", "localhost", CONFIG, one, {"more": two}, broker=any_broker_url)
    )
    one.insert(1)
    two.insert(2)
    assert client.update()
    wait_until(lambda: contents(server) == [1])
    wait_until(lambda: list(server.data_store("more")._data_queue) == [2])


def test_the_retention_holds_while_the_trainer_is_away(serve, connect, any_broker_url):
    if any_broker_url.startswith("memory"):
        pytest.skip("fakeredis does not say what a stream weighs")
    server = serve()
    server.register_data_store("env", QueuedDataStore(1000), Retention(200_000, "drop_oldest"))
    client = connect()
    client.store.insert(np.zeros(10_000, np.uint8))
    assert client.update()
    wait_until(lambda: len(contents(server)) == 1)
    server.stop()
    wait_until(lambda: client._server is None)
    for _ in range(100):
        client.store.insert(np.zeros(10_000, np.uint8))
        assert client.update()
    assert client.dropped > 0
    stream = client._keys.store("env").stream(client.actor_id)
    assert client._stream_channel.call("MEMORY", "USAGE", stream) < 400_000


def test_an_interrupt_while_rows_are_encoded_loses_none(serve, connect, monkeypatch):
    server, client = serve(), connect()
    encode, interrupts = codec.ChunkEncoder.encode, [KeyboardInterrupt()]
    monkeypatch.setattr("agentlace.transport.cutting.CHUNK_MAX_ROWS", 10)

    def encode_the_third_with_an_interrupt(self, rows, meta):
        if rows[0] == 20 and interrupts:
            raise interrupts.pop()
        return encode(self, rows, meta)

    monkeypatch.setattr(codec.ChunkEncoder, "encode", encode_the_third_with_an_interrupt)
    client.store.batch_insert(list(range(35)))
    with pytest.raises(KeyboardInterrupt):
        client.update()
    client.store.insert(35)
    assert client.update()
    wait_until(lambda: len(contents(server)) >= 36)
    assert contents(server) == list(range(36))


def test_a_call_that_fails_again_and_again_is_not_logged_again_and_again(serve, connect, caplog):
    server, client = serve(), connect()
    server.stop()
    client.timeout_ms = 10
    for _ in range(30):
        assert client.request("ping", {}) is None
    assert len([line for line in caplog.messages if "trainer:5588" in line and "no " in line]) < 6


FORKER = """
import os, sys
from agentlace import Closed, TrainerClient, TrainerConfig
from agentlace.data import QueuedDataStore

store = QueuedDataStore(100)
client = TrainerClient("env", "localhost", TrainerConfig(5588, 5589, request_types=["ping"]), store)
store.insert("before")
assert client.update()
child = os.fork()
if child == 0:
    outcomes = []
    store.insert("of the child")
    print("child update", client.update(), type(client.last_error).__name__, flush=True)
    print("child request", client.request("ping", {}), client.last_error, flush=True)
    sys.exit(7)  # with atexit: it must not say goodbye for its parent
status = os.waitpid(child, 0)[1]
print("child ended with", os.waitstatus_to_exitcode(status), flush=True)
for i in range(3):
    store.insert(i)
    assert client.update_datastore("env", -1, confirm_update=True)
print("parent done", flush=True)
"""


@pytest.mark.parametrize("any_broker_url", ["redis", "unix"], indirect=True)
def test_a_fork_does_not_share_its_parents_connections(serve, any_broker_url):
    server = serve()
    with Program(FORKER, broker=any_broker_url) as program:
        assert program.line("child update") == "child update False Closed"
        assert "before a fork" in program.line("child request")
        assert program.line("child ended") == "child ended with 7"
        assert program.line("parent done")
        assert program.wait() == 0
    assert contents(server) == ["before", 0, 1, 2]


@pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)
def test_interfaces_are_empty_without_a_server_also_if_strict(running, any_broker_url):
    client = running(
        InferenceClient("localhost", 5600, timeout_ms=50, strict=True, broker=any_broker_url)
    )
    assert client.interfaces() == set()


def test_a_store_that_is_still_taking_a_chunk_is_not_consumed_anew(serve, connect, monkeypatch):
    monkeypatch.setattr("agentlace.transport.consumer.JOIN_TIMEOUT_S", 0.1)
    inside, go_on = threading.Event(), threading.Event()

    class Slow(QueuedDataStore):
        def batch_insert(self, batch_data):
            inside.set()
            assert go_on.wait(20)
            super().batch_insert(batch_data)

    server = serve(store=Slow(100))
    client = connect()
    client.store.insert("once")
    assert client.update() and inside.wait(20)
    server.stop()
    with pytest.raises(AgentlaceError, match="'env' is still taking a chunk"):
        server.start(threaded=True)
    assert not server.is_running
    go_on.set()
    wait_until(lambda: len(contents(server)) == 1)
    wait_until(lambda: not server._stores._filled["env"].consumer.is_applying)
    server.start(threaded=True)
    client.store.insert("again")
    wait_until(client.update)
    wait_until(lambda: len(contents(server)) >= 2)
    assert contents(server) == ["once", "again"]
