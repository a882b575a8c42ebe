"""The trainer pauses its actors and lets them go on: programs of their own, killed and cut off."""

import contextlib
import threading

import numpy as np
import pytest

from agentlace import (
    BrokerURL,
    Closed,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    TrainerSMInterface,
)
from agentlace.data import QueuedDataStore
from agentlace.transport.connection import Broker
from agentlace.transport.keys import HEARTBEAT_S, ServiceKeys

from .support import InThread, Log, LossyProxy, Program, holds_for, stay_on_tcp, wait_until

CONFIG = TrainerConfig(5555, 5556)

ACTOR = """
import sys, threading
from agentlace import TrainerClient, TrainerConfig
from agentlace.data import QueuedDataStore

name, how = sys.argv[1:]
store = QueuedDataStore(100_000)
client = TrainerClient(
    "env", "localhost", TrainerConfig(5555, 5556), store, wait_for_server=True,
    timeout_ms=2000, actor_id=name,
)
pause, go_on = threading.Event(), threading.Event()
if how == "callback":
    go_on.set()


    def on_pause(paused):
        print("told", paused)
        (go_on.clear if paused else go_on.set)()

    client.on_pause(on_pause)
print("connected", flush=True)
step = 0
while True:
    if how == "wait":
        client.wait_while_paused()
    elif how == "poll":
        while client.is_paused:
            pause.wait(0.01)
    elif how == "callback":
        go_on.wait()
    store.insert({"n": step})
    client.update()
    step += 1
    pause.wait(0.005)
"""

TRAINER = """
import sys
from agentlace import TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore

server = TrainerServer(TrainerConfig(5555, 5556))
server.register_data_store("env", QueuedDataStore(100_000))
server.start(threaded=True)
print("serving", flush=True)
for line in sys.stdin:
    if line.strip() == "pause":
        print("late", server.pause_actors(20.0), flush=True)
    if line.strip() == "stop":
        server.stop()
        print("stopped", flush=True)
"""


@pytest.fixture
def serve_at(running):
    def serve_at(broker):
        server = running(TrainerServer(CONFIG, broker=broker))
        server.register_data_store("env", QueuedDataStore(100_000))
        server.start(threaded=True)
        return server

    return serve_at


@pytest.fixture
def serve(serve_at, any_broker_url):
    return lambda: serve_at(any_broker_url)


@pytest.fixture
def connect_at(running):
    def connect_at(broker, actor_id="robot", store=True):
        stores = {"env": QueuedDataStore(1000)} if store else {}
        return running(
            TrainerClient(
                "env",
                "localhost",
                CONFIG,
                data_stores=stores,
                broker=broker,
                actor_id=actor_id,
                timeout_ms=2000,
            )
        )

    return connect_at


@pytest.fixture
def connect(connect_at, any_broker_url):
    return lambda *args, **kwargs: connect_at(any_broker_url, *args, **kwargs)


def stands_still(server, duration_s=0.3):
    """Whether nothing more arrives, once what was on its way has."""
    store = server.data_store("env")
    seen = [-1]

    def settled():
        seen.append(store.latest_data_id())
        threading.Event().wait(0.05)
        return seen[-1] == store.latest_data_id() == seen[-2]

    wait_until(settled)
    count = store.latest_data_id()
    holds_for(lambda: store.latest_data_id() == count, duration_s, "standing still")
    return count


# -- programs of their own -------------------------------------------------------------------------


def test_programs_stand_still_until_they_may_go_on(broker_url, serve_at, running):
    server = serve_at(broker_url)
    actors = {
        how: running(Program(ACTOR, how, how, broker=broker_url))
        for how in ("wait", "poll", "callback")
    }
    for actor in actors.values():
        actor.line("connected")
    for _ in range(2):
        before = server.data_store("env").latest_data_id()
        wait_until(lambda before=before: server.data_store("env").latest_data_id() > before + 20)
        assert server.pause_actors(timeout_s=20.0) == []
        count = stands_still(server)
        assert server.pause_actors(timeout_s=20.0) == []  # the same pause
        server.resume_actors()
        wait_until(lambda count=count: server.data_store("env").latest_data_id() > count + 20)
    told = [line for line in actors["callback"].lines if line.startswith("told")]
    assert told == ["told True", "told False"] * 2


def test_a_program_that_never_asks_is_named_and_not_disturbed(broker_url, serve_at, running):
    server = serve_at(broker_url)
    running(Program(ACTOR, "deaf", "", broker=broker_url)).line("connected")
    running(Program(ACTOR, "good", "wait", broker=broker_url)).line("connected")
    assert server.pause_actors(timeout_s=1.5) == ["deaf"]
    count = server.data_store("env").latest_data_id()
    wait_until(lambda: server.data_store("env").latest_data_id() > count + 20)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_pause_ends_with_its_trainer(end, broker_url, running):
    trainer = running(Program(TRAINER, broker=broker_url))
    trainer.line("serving")
    client = running(
        TrainerClient("env", "localhost", CONFIG, QueuedDataStore(10), broker=broker_url)
    )
    waiting = InThread(lambda: wait_until(lambda: client.is_paused) and client.wait_while_paused())
    trainer.tell("pause")
    assert trainer.line("late") == "late []"
    assert waiting.is_running and client.is_paused
    if end == "kill":
        trainer.kill()
    else:
        trainer.tell("stop")
        trainer.line("stopped")
    assert waiting.result() is True
    assert client.is_paused is False


def test_an_actor_that_died_is_not_waited_for(broker_url, serve_at, running):
    server = serve_at(broker_url)
    actor = running(Program(ACTOR, "dead", "", broker=broker_url))
    actor.line("connected")
    assert server.pause_actors(timeout_s=0.0) == ["dead"]
    waiting = InThread(lambda: server.pause_actors(timeout_s=20.0))
    actor.kill()
    with contextlib.closing(Broker(BrokerURL.parse(broker_url)).channel()) as channel:
        keys = ServiceKeys(BrokerURL.parse(broker_url).namespace, "trainer", 5555)
        channel.call("DEL", keys.client("dead"))  # as it ends LEASE_MS later
    assert waiting.result() == []


# -- what a client sees ----------------------------------------------------------------------------


def test_whoever_comes_later_is_paused_at_once(serve, connect):
    server = serve()
    assert server.pause_actors() == []
    late = connect()
    assert late.is_paused is True
    assert late.wait_while_paused(timeout_s=0.1) is False
    told = Log()
    late.on_pause(told)
    assert told == [True]
    assert server.pause_actors(timeout_s=20.0) == []
    waiting = InThread(late.wait_while_paused)
    server.resume_actors()
    assert waiting.result() is True
    told.wait(2)
    assert told == [True, False]
    assert late.is_paused is False and late.wait_while_paused() is True


def test_without_a_pause_nothing_waits(serve, connect):
    server, client = serve(), connect()
    assert client.is_paused is False
    assert client.wait_while_paused(timeout_s=0) is True
    server.resume_actors()
    assert client.is_paused is False


def test_update_goes_on_during_a_pause(serve, connect):
    server, client = serve(), connect()
    assert server.pause_actors(timeout_s=0.0) == ["robot"]
    wait_until(lambda: client.is_paused)
    client._outboxes["env"].store.insert({"n": np.int64(1)})
    assert client.update_datastore("env", -1, confirm_update=True)
    assert len(server.data_store("env")) == 1


def test_clients_that_only_look_on_are_not_waited_for(serve, connect):
    server, viewer = serve(), connect("viewer", store=False)
    assert server.pause_actors() == []
    wait_until(lambda: viewer.is_paused)


def test_a_stopped_client_does_not_wait(serve, connect):
    server, client = serve(), connect()
    waiting = InThread(lambda: wait_until(lambda: client.is_paused) and client.wait_while_paused())
    assert server.pause_actors(timeout_s=20.0) == []
    wait_until(lambda: client._watch.state.changed._waiters)
    client.stop()
    with pytest.raises(Closed, match="waited for the end of a pause"):
        waiting.result()
    with pytest.raises(Closed):
        client.is_paused  # noqa: B018
    server.stop()
    with pytest.raises(Closed, match="not running"):
        server.pause_actors()


def test_a_callback_that_fails_does_not_end_the_watch(serve, connect):
    server, client, told = serve(), connect(), Log()

    def failing(paused):
        raise RuntimeError("a robot that cannot stop")

    client.on_pause(failing)
    client.on_pause(told)
    assert server.pause_actors(timeout_s=20.0) == []
    server.resume_actors()
    told.wait(2)
    assert told == [True, False]


def test_a_connection_that_was_cut_does_not_end_a_pause(
    broker_url, embedded_broker, serve_at, connect_at, running, monkeypatch, namespace
):
    """Nor is its end missed by one that was cut off when it came."""
    stay_on_tcp(monkeypatch)
    server = serve_at(broker_url)
    proxy = running(LossyProxy(embedded_broker.settings.port))
    client = connect_at(f"redis://127.0.0.1:{proxy.port}?ns={namespace}")
    client.on_pause(lambda paused: None)
    assert server.pause_actors(timeout_s=20.0) == []
    proxy.cut()
    holds_for(lambda: client.is_paused, 1.5 * HEARTBEAT_S, "the pause")
    proxy.cut()
    server.resume_actors()
    proxy.cut()
    assert client.wait_while_paused(timeout_s=20.0) is True


def test_an_actor_that_is_cut_off_for_good_goes_on(
    broker_url, embedded_broker, serve_at, connect_at, running, monkeypatch, namespace
):
    stay_on_tcp(monkeypatch)
    monkeypatch.setattr("agentlace.trainer.pause.LEASE_MS", 3000)
    server, told = serve_at(broker_url), Log()
    proxy = running(LossyProxy(embedded_broker.settings.port))
    client = connect_at(f"redis://127.0.0.1:{proxy.port}?ns={namespace}")
    client.on_pause(told)
    assert server.pause_actors(timeout_s=20.0) == []
    proxy.deaf.set()
    assert client.wait_while_paused(timeout_s=20.0) is True
    told.wait(2)
    assert told == [True, False]
    proxy.cut()


def test_the_roll_does_not_keep_who_is_gone(serve, connect):
    server = serve()
    first, second = connect("first"), connect("second")
    assert server.pause_actors(timeout_s=0.0) == ["first", "second"]
    first.stop()
    assert server.pause_actors(timeout_s=0.0) == ["second"]
    wait_until(lambda: second.is_paused)
    assert server.pause_actors(timeout_s=20.0) == []


def test_one_process_pauses_too():
    both = TrainerSMInterface()
    told = Log()
    both.on_pause(told)
    assert both.is_paused is False and both.wait_while_paused() is True
    assert both.pause_actors(timeout_s=0.0) == []
    assert both.is_paused is True and both.wait_while_paused(timeout_s=0.01) is False
    waiting = InThread(both.wait_while_paused)
    both.resume_actors()
    assert waiting.result() is True
    assert told == [True, False]
    silent = TrainerSMInterface()
    assert silent.pause_actors(timeout_s=0.01) == ["actor"]
    assert silent.is_paused
    assert silent.pause_actors(timeout_s=0.0) == []
