"""What nodes say that they wait for."""

import threading
import time

import numpy as np
import pytest

from agentlace import (
    InferenceClient,
    InferenceServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore
from agentlace.recorder import Recorder
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import Retention
from agentlace.waits import Trying, Wait, told_waits, waiting
from tests.services.support import InThread, wait_until


def row(number):
    return {"observations": np.full(1000, number, np.float32), "rewards": float(number)}


class Stubborn(QueuedDataStore):
    """A store that takes nothing until it may."""

    def __init__(self, may):
        super().__init__(1000)
        self._may = may

    def batch_insert(self, batch_data):
        self._may.wait(30)
        super().batch_insert(batch_data)


@pytest.fixture
def may():
    """Let what stands still go on; at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def trainer(running, broker_url, stores, **callbacks):
    config = TrainerConfig(request_types=["ask"])
    server = running(TrainerServer(config, broker=broker_url, **callbacks))
    for name, (store, retention) in stores.items():
        server.register_data_store(name, store, retention)
    server.start(threaded=True)
    return server


def actor(running, broker_url, store, actor_id, **options):
    config = TrainerConfig(request_types=["ask"])
    queue = QueuedDataStore(1000)
    options = {"broker": broker_url, "actor_id": actor_id, **options}
    return running(TrainerClient(store, "localhost", config, queue, **options)), queue


def waits_of(snapshot, name):
    return [wait for peer in snapshot.peers if peer.name == name for wait in peer.waits]


def test_actors_say_what_holds_them_up(running, found, broker_url, namespace, may):
    """Room that a dead recorder takes, a trainer that applies nothing, a reply that is late."""
    stores = {
        "full": (QueuedDataStore(1000), Retention(max_bytes=20_000)),
        "slow": (Stubborn(may), None),
    }
    answer = {"request_callback": lambda kind, payload: may.wait(30)}
    trainer(running, broker_url, stores, **answer)
    keys = ServiceKeys(namespace, "trainer", 5555).store("full")
    Broker(BrokerURL.parse(broker_url)).channel().call("SADD", keys.consumers, "recorder:pick")
    sender, rows = actor(running, broker_url, "full", "sender", timeout_ms=50)
    confirmer, slow_rows = actor(running, broker_url, "slow", "confirmer", timeout_ms=30_000)
    asker, _ = actor(running, broker_url, "full", "asker", timeout_ms=30_000)
    for number in range(20):
        rows.insert(row(number))
        sender.update()
    slow_rows.insert(row(0))
    calls = [
        InThread(lambda: confirmer.update_datastore("slow", -1, confirm_update=True)),
        InThread(lambda: asker.request("ask", {})),
    ]

    def is_told(snapshot):
        sender.update()  # as programs do, in vain
        return all(waits_of(snapshot, name) for name in ("sender", "confirmer", "asker"))

    snapshot = found(is_told, "what the three wait for")
    (room,), (applied,), (reply,) = (
        waits_of(snapshot, name) for name in ("sender", "confirmer", "asker")
    )
    assert room.startswith("room in store 'full': 1") and "of 19.5 KiB are used" in room
    assert "consumer 'recorder:pick' (not seen for days) is" in room
    assert applied.startswith("the trainer to apply what was sent to store 'slow' (for ")
    assert reply.startswith("reply of trainer:5555 to request 'ask' (for ")
    may.set()
    for call in calls:
        call.result()
    found(
        lambda s: not waits_of(s, "confirmer") and not waits_of(s, "asker"),
        "the end of what has come",
    )


def test_a_store_that_the_trainer_does_not_have(running, found, broker_url):
    trainer(running, broker_url, {"env": (QueuedDataStore(10), None)})
    sender, rows = actor(running, broker_url, "demos", "sender")
    rows.insert(row(0))
    snapshot = found(
        lambda s: not sender.update() and waits_of(s, "sender"), "the store that is not there"
    )
    assert waits_of(snapshot, "sender")[0].startswith(
        "the trainer has no store 'demos', but ['env']"
    )


def test_who_waits_for_a_server_or_for_actors_is_there(running, found, broker_url, tmp_path):
    """Before its trainer is; the program is still in the constructor."""
    recorder = running(Recorder(["env"], tmp_path, "pick", broker=broker_url))
    ended = InThread(recorder.run)
    early = InThread(lambda: actor(running, broker_url, "env", "early", wait_for_server=True)[0])
    snapshot = found(
        lambda s: waits_of(s, "early") and waits_of(s, "recorder:pick"), "both that wait"
    )
    assert waits_of(snapshot, "early")[0].startswith("server trainer:5555, which is not there (for")
    assert waits_of(snapshot, "recorder:pick")[0].startswith("an actor of store 'env' (for")
    trainer(running, broker_url, {"env": (QueuedDataStore(10), None)})
    client = early.result()
    found(lambda s: not waits_of(s, "early"), "that it has its server")
    assert client.update()
    recorder.interrupt()
    ended.result()


def test_an_actor_that_is_paused(running, found, broker_url):
    server = trainer(running, broker_url, {"env": (QueuedDataStore(10), None)})
    client, _ = actor(running, broker_url, "env", "robot")
    assert not client.is_paused
    paused = InThread(lambda: server.pause_actors(10.0))
    wait_until(lambda: client.is_paused)
    assert paused.result() == []
    snapshot = found(lambda s: waits_of(s, "robot"), "what the actor waits for")
    assert waits_of(snapshot, "robot")[0].startswith("the end of the pause of trainer:5555 (for")
    server.resume_actors()
    found(lambda s: not waits_of(s, "robot"), "the end of the pause")


def test_a_caller_without_answers(running, found, broker_url, may):
    """Each call is over before a second is: that it gets nowhere is told all the same."""
    server = running(InferenceServer(5600, broker=broker_url))
    server.register_interface("stuck", lambda payload: may.wait(30))
    server.start(threaded=True)
    client = running(InferenceClient("localhost", 5600, timeout_ms=100, broker=broker_url))

    def is_told(snapshot):
        assert client.call("stuck", 1) is None
        return [w for p in snapshot.clients("inference:5600") for w in p.waits]

    (wait,) = is_told(found(is_told, "the reply that does not come"))
    assert wait.startswith("reply of inference:5600 to call 'stuck' (for ")


def test_what_is_tried_in_vain_waits_since_the_first_time():
    trying = Trying()
    assert not list(trying.waits())
    trying.failed("room")
    (first,) = trying.waits()
    trying.failed("more room")
    (second,) = trying.waits()
    assert (second.text, second.since_s) == ("more room", first.since_s)
    trying.succeeded()
    assert not list(trying.waits())


def test_who_does_not_try_again_waits_no_more(monkeypatch):
    trying = Trying()
    trying.failed("room")
    monkeypatch.setattr("agentlace.waits.FORGOTTEN_S", 0.0)
    assert not list(trying.waits())


def test_the_longest_wait_first_and_short_ones_not_at_all():
    now_s = time.monotonic()
    waits = [Wait("b", now_s - 5), Wait("a", now_s - 61), Wait("new", now_s), Wait("unknown")]
    assert told_waits("nobody", [lambda: waits]) == ["a (for 61 s)", "b (for 5 s)", "unknown"]


def test_a_description_that_fails_leaves_the_others(caplog):
    def fails():
        raise RuntimeError("nobody knows")

    with waiting("tester", fails):
        assert told_waits("tester", [fails, lambda: [Wait("rain")]]) == ["rain"]
    assert "could not be told" in caplog.text
