"""Real processes that are killed, frozen and cut off: what arrives, and what is said meanwhile."""

import logging
import os
import signal
import threading
import time

import numpy as np
import pytest

from agentlace import BrokerUnreachable, TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore, ReplayBuffer
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

from .support import InThread, Log, Program, holds_for, wait_until

CONFIG = TrainerConfig(5555, 5556, request_types=["ping"])

ACTOR = """
import sys, time
import numpy as np
from agentlace import TrainerClient, TrainerConfig
from agentlace.data import QueuedDataStore

name, first, last, pause_s, actor_id = sys.argv[1:]
config = TrainerConfig(5555, 5556, request_types=["ping"])
store = QueuedDataStore(100_000)
client = TrainerClient(
    "env", "localhost", config, store, wait_for_server=True, timeout_ms=500,
    actor_id=actor_id or None,
)
client.recv_network_callback(lambda network: print("network", network["n"]))
print("connected")
for i in range(int(first), int(last)):
    store.insert({"actor": name, "i": i, "image": np.full((32, 32), i % 251, np.uint8)})
    if i % 5 == 4:
        if client.update():
            print("sent", i)
    time.sleep(float(pause_s))
while not client.update_datastore("env", -1, confirm_update=True):
    pass
print("done", client.lost, client.get_server_last_update_id("env"))
sys.stdin.read()
"""

LEARNER = """
import sys
from agentlace import TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore

config = TrainerConfig(5555, 5556, request_types=["ping"])
store = QueuedDataStore(100_000)
server = TrainerServer(config)
server.register_data_store("env", store)
server.start(threaded=True)
print("serving")
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "publish":
        server.publish_network({"n": int(arguments[0])})
    if command == "rows":
        rows = [(row["actor"], row["i"]) for row in list(store._data_queue)]
        whole = all((row["image"] == row["i"] % 251).all() for row in list(store._data_queue))
        print("rows", whole, *(f"{actor}:{i}" for actor, i in rows))
"""


def actor(broker, name="a", first=0, last=100, pause_s=0.0, actor_id=""):
    return Program(ACTOR, name, first, last, pause_s, actor_id, broker=broker)


class Learner(Program):
    def __init__(self, broker):
        super().__init__(LEARNER, broker=broker)

    def rows(self):
        """Return (actor, number) of all rows in their order, after a check of their images."""
        seen = len(self.lines)
        self.tell("rows")
        _, whole, *rows = self.line("rows", after=seen).split()
        assert whole == "True"
        return [(actor, int(i)) for actor, i in (row.split(":") for row in rows)]

    def wait_for(self, n):
        wait_until(lambda: len(self.rows()) >= n, what=f"{n} rows at the learner")
        return self.rows()


def of(rows, name):
    return [i for actor, i in rows if actor == name]


@pytest.fixture
def own_broker(tmp_path):
    """A broker that the test may stop; it keeps its data."""
    directory = tmp_path / "broker"
    directory.mkdir()
    settings = Settings(port=free_port(), directory=str(directory))
    with EmbeddedBroker(settings) as broker:
        broker.address = f"redis://127.0.0.1:{settings.port}"
        yield broker


# -- actors ----------------------------------------------------------------------------------------


def test_two_actors_feed_one_store_for_a_while(broker_url, running):
    """Every transition arrives exactly once, and in order per actor."""
    learner = running(Learner(broker_url))
    actors = [running(actor(broker_url, name, last=1500, pause_s=0.001)) for name in "ab"]
    for program in actors:
        program.line("done")
    rows = learner.rows()
    assert len(rows) == 3000
    for name in "ab":
        assert of(rows, name) == list(range(1500))
    assert rows != sorted(rows)  # they were there at the same time


def test_an_actor_that_is_killed_and_restarted_keeps_its_identity(broker_url, running):
    learner = running(Learner(broker_url))
    first = running(actor(broker_url, "a", last=100_000, pause_s=0.002, actor_id="arm"))
    first.line("sent 49")
    first.kill()
    sent = max(int(line.split()[1]) for line in first.lines if line.startswith("sent"))
    second = running(actor(broker_url, "a", first=200_000, last=200_050, actor_id="arm"))
    second.line("done")
    numbers = of(learner.rows(), "a")
    old = [i for i in numbers if i < 200_000]
    assert old == list(range(len(old))) and sent <= old[-1]
    assert numbers[len(old) :] == list(range(200_000, 200_050))


def test_a_frozen_actor_that_was_replaced_is_shut_out(broker_url, running):
    learner = running(Learner(broker_url))
    zombie = running(actor(broker_url, "old", last=100_000, pause_s=0.002, actor_id="arm"))
    zombie.line("sent 19")
    zombie.freeze()
    successor = running(actor(broker_url, "new", last=30, actor_id="arm"))
    successor.line("done")
    before = learner.rows()
    zombie.thaw()
    zombie.line("ActorReplaced")
    assert zombie.wait() == 1
    assert learner.rows() == before
    assert of(before, "new") == list(range(30))


# -- learners --------------------------------------------------------------------------------------


def test_a_learner_that_is_killed_refills_from_the_stream(broker_url, running):
    """While it is away the actor goes on, and finds its successor's networks."""
    learner = running(Learner(broker_url))
    robot = running(actor(broker_url, last=800, pause_s=0.005))
    learner.wait_for(50)
    learner.tell("publish 1")
    robot.line("network 1")
    learner.kill()
    sent = max(int(line.split()[1]) for line in robot.lines if line.startswith("sent"))
    robot.line(f"sent {(sent // 5 + 20) * 5 - 1}")  # 100 more with nobody there
    successor = running(Learner(broker_url))
    robot.line("done")
    rows = successor.rows()
    assert of(rows, "a") == list(range(800))
    successor.tell("publish 2")
    robot.line("network 2")


def test_a_second_kill_changes_nothing(broker_url, running):
    robot = running(actor(broker_url, last=400, pause_s=0.005))
    for _ in range(3):
        learner = running(Learner(broker_url))
        rows = learner.wait_for(20)
        assert of(rows, "a") == list(range(len(rows)))
        learner.kill()
    learner = running(Learner(broker_url))
    robot.line("done")
    assert of(learner.rows(), "a") == list(range(400))


# -- the broker ------------------------------------------------------------------------------------


def test_a_broker_that_stops_for_seconds_is_waited_for_by_both_sides(own_broker, running):
    """Nothing is lost, both go on by themselves, and the logs say what they wait for."""
    url = own_broker.address
    learner = running(Learner(url))
    robot = running(actor(url, last=800, pause_s=0.005))
    learner.wait_for(50)
    own_broker.stop()
    for program in (learner, robot):
        assert url in program.line("no broker at")
    assert "agentlace broker" in robot.line("update of store 'env'")
    holds_for(lambda: robot.process.poll() is None, 2.0)
    own_broker.start()
    robot.line("done", timeout_s=40)
    assert of(learner.rows(), "a") == list(range(800))
    learner.tell("publish 7")
    robot.line("network 7")


def test_a_broker_that_freezes_is_waited_for(own_broker, running):
    """A connection that looks alive but is deaf: the broker's process is stopped."""
    url = own_broker.address
    learner = running(Learner(url))
    robot = running(actor(url, last=600, pause_s=0.005))
    learner.wait_for(50)
    os.kill(own_broker.pid, signal.SIGSTOP)
    try:
        robot.line("update of store 'env'")
        holds_for(lambda: robot.process.poll() is None, 1.0)
    finally:
        os.kill(own_broker.pid, signal.SIGCONT)
    robot.line("done", timeout_s=40)
    assert of(learner.rows(), "a") == list(range(600))


def test_publishing_is_fast_though_the_broker_is_gone(own_broker, running, caplog):
    """From the training thread: it waits for nobody, and the newest arrives when it can."""
    url = own_broker.address
    server = running(TrainerServer(CONFIG, broker=url))
    server.start(threaded=True)
    client = running(TrainerClient("robot", "localhost", CONFIG, broker=url))
    seen = Log()
    client.recv_network_callback(lambda network: seen(network["n"]))
    server.publish_network({"n": 0, "w": np.zeros(200_000)})
    seen.wait()
    own_broker.stop()
    started = time.monotonic()
    for n in range(1, 11):
        server.publish_network({"n": n, "w": np.full(200_000, n)})
    assert time.monotonic() - started < 1.0
    wait_until(lambda: "waits" in caplog.text or "wait:" in caplog.text)
    assert seen == [0]
    own_broker.start()
    wait_until(lambda: seen[-1] == 10, what="the newest network")
    assert seen == sorted(set(seen))


def test_requests_and_updates_say_that_the_broker_is_gone_and_recover(own_broker, running):
    url = own_broker.address
    buffer = ReplayBuffer(100)
    server = running(TrainerServer(CONFIG, request_callback=lambda *_: {"pong": 1}, broker=url))
    server.register_data_store("env", buffer)
    server.start(threaded=True)
    store = QueuedDataStore(100)
    args = dict(timeout_ms=300, broker=url)
    client = running(TrainerClient("env", "localhost", CONFIG, store, **args))
    store.insert({"i": 0})
    assert client.update()
    own_broker.stop()
    for i in range(1, 4):
        store.insert({"i": i})
        started = time.monotonic()
        assert client.update() is False
        assert client.request("ping", {}) is None
        assert time.monotonic() - started < 3
        assert isinstance(client.last_error, BrokerUnreachable) and url in str(client.last_error)
    assert client.get_server_last_update_id("env") is None
    own_broker.start()
    client.timeout_ms = 5000
    assert wait_until(client.update)
    assert client.update_datastore("env", -1, confirm_update=True)
    assert buffer.sample(4, indx=np.arange(4))["i"].tolist() == [0, 1, 2, 3]
    assert wait_until(lambda: client.request("ping", {})) == {"pong": 1}


# -- the queue -------------------------------------------------------------------------------------


def test_what_a_queue_drops_between_two_updates_is_counted_and_warned_about(
    any_broker_url, running, caplog
):
    server = running(TrainerServer(CONFIG, broker=any_broker_url))
    server.register_data_store("env", QueuedDataStore(1000))
    server.start(threaded=True)
    store = QueuedDataStore(10)
    client = running(TrainerClient("env", "localhost", CONFIG, store, broker=any_broker_url))
    caplog.set_level(logging.WARNING)
    for start, n, lost in [(0, 10, 0), (10, 14, 4), (24, 3, 4), (27, 25, 19)]:
        caplog.clear()
        store.batch_insert(list(range(start, start + n)))
        assert client.update_datastore("env", -1, confirm_update=True)
        assert client.lost == lost
        told = [r.message for r in caplog.records if "overwritten" in r.message]
        assert len(told) == (n > 10)
        for text in told:
            assert f"{n - 10} transitions" in text and f"({lost} so far)" in text
    arrived = list(server.data_store("env")._data_queue)
    assert arrived == [*range(10), *range(14, 24), *range(24, 27), *range(42, 52)]
    assert server.counters()["env"]["missing"] == 0


def test_rows_that_were_taken_are_not_lost_while_the_broker_is_gone(own_broker, running):
    """The queue overflows during an outage; what an update had taken before is kept."""
    url = own_broker.address
    server = running(TrainerServer(CONFIG, broker=url))
    server.register_data_store("env", QueuedDataStore(1000))
    server.start(threaded=True)
    store = QueuedDataStore(5)
    args = dict(timeout_ms=100, broker=url)
    client = running(TrainerClient("env", "localhost", CONFIG, store, **args))
    store.insert("connected")
    assert client.update()
    own_broker.stop()
    store.batch_insert(["a", "b"])
    assert client.update() is False
    store.batch_insert(list(range(20)))
    assert client.update() is False
    own_broker.start()
    client.timeout_ms = 5000
    wait_until(client.update)
    assert client.update_datastore("env", -1, confirm_update=True)
    arrived = list(server.data_store("env")._data_queue)
    assert arrived == ["connected", "a", "b", *range(15, 20)]
    assert client.lost == 15


def test_a_slow_trainer_does_not_stop_the_actor(broker_url, running):
    """Its store's thread is held up; the actor's updates return when the broker has the data."""
    opened = threading.Event()

    class Slow(QueuedDataStore):
        def batch_insert(self, batch_data):
            assert opened.wait(20)
            super().batch_insert(batch_data)

    server = running(TrainerServer(CONFIG, broker=broker_url))
    server.register_data_store("env", Slow(10_000))
    server.start(threaded=True)
    store = QueuedDataStore(10_000)
    client = running(TrainerClient("env", "localhost", CONFIG, store, broker=broker_url))

    def play():
        for i in range(200):
            store.insert(i)
            assert client.update()

    InThread(play).result()
    assert len(server.data_store("env")) == 0
    opened.set()
    wait_until(lambda: client.update_datastore("env", -1, confirm_update=True))
    assert list(server.data_store("env")._data_queue) == list(range(200))
