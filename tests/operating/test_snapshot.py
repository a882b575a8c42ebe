"""What can be told of a running system from the broker alone."""

import threading

import numpy as np
import pytest

from agentlace import InferenceClient, InferenceServer, TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore, RateLimiter, ReplayBuffer
from agentlace.errors import Closed
from agentlace.operating import rates
from agentlace.telemetry import METRICS, Telemetry
from tests.services.support import InThread, wait_until


def row(number):
    return {"observations": np.full(3, number, np.float32), "rewards": float(number)}


def system(running, broker_url, rows=20):
    """A trainer with a buffer, and an actor that has sent."""
    buffer, queue = ReplayBuffer(1000), QueuedDataStore(1000)
    server = running(TrainerServer(TrainerConfig(request_types=["ask"]), broker=broker_url))
    server.register_data_store("env", buffer)
    server.start(threaded=True)
    config = TrainerConfig(request_types=["ask"])
    client = running(
        TrainerClient("env", "localhost", config, queue, broker=broker_url, actor_id="robot-1")
    )
    for number in range(rows):
        queue.insert(row(number))
    assert client.update()
    wait_until(lambda: len(buffer) == rows)
    return server, client, buffer, queue


def test_peers_tell_what_they_are_and_how_far(running, look, found, broker_url):
    server, client, *_ = system(running, broker_url)
    server.publish_network({"w": np.zeros(3)})
    client.recv_network_callback(lambda network: None)
    snapshot = found(
        lambda s: (
            s.clients("trainer:5555")
            and s.clients("trainer:5555")[0].value("network_version") == 1
            and s.server("trainer:5555").value("transitions_applied_total", store="env") == 20
        ),
        "the numbers of both ends",
    )
    trainer, (actor,) = snapshot.server("trainer:5555"), snapshot.clients("trainer:5555")
    assert (trainer.does, actor.does, actor.name) == ("trainer", "actor", "robot-1")
    assert trainer.is_there and not trainer.is_late
    assert trainer.value("store_size", store="env") == 20
    assert trainer.value("network_version") == 1
    assert actor.value("transitions_sent_total", store="env") == 20
    assert actor.value("transitions_pending") == 0
    assert actor.value("no_such_number") is None
    assert trainer.stores["env"]["when_full"] == "block"


def test_streams_and_consumers(running, look, found, broker_url):
    system(running, broker_url)
    snapshot = found(lambda s: s.stores and not s.stores[0].behind, "all applied")
    (store,) = snapshot.stores
    assert (store.service, store.name, store.budget_bytes) == ("trainer:5555", "env", 1 << 30)
    (stream,) = store.streams
    assert stream.actor == "robot-1" and stream.newest.number == 20 and stream.nbytes > 0
    assert snapshot.broker.used_bytes > 0 and snapshot.broker.round_trip_s > 0
    assert snapshot.broker.keys_bytes["trainer stream:*"] == pytest.approx(stream.nbytes)


def test_a_server_that_left_is_remembered(running, look, found, broker_url):
    server, *_ = system(running, broker_url)
    found(lambda s: s.server("trainer:5555"), "the trainer")
    server.stop()
    trainer = look().server("trainer:5555")
    assert not trainer.is_there and trainer.beat_s >= 0


def test_rates_are_of_what_was_counted(running, look, found, broker_url):
    server = running(InferenceServer(5600, broker=broker_url))
    server.register_interface("echo", lambda payload: payload)
    server.start(threaded=True)
    client = running(InferenceClient("localhost", 5600, broker=broker_url))
    for _ in range(5):
        client.call("echo", 1)
    before = found(lambda s: _answered(s) == 5, "five answers")
    for _ in range(10):
        client.call("echo", 1)
    after = found(lambda s: _answered(s) == 15, "fifteen answers")
    key = ("inference:5600", "inference:5600", "requests_answered_total", ())
    told = [s.server("inference:5600").told_ms for s in (before, after)]
    assert rates(before, after)[key] == pytest.approx(10_000 / (told[1] - told[0]))
    assert key not in rates(after, after), "nothing was told in between"


def _answered(snapshot):
    server = snapshot.server("inference:5600")
    return server and server.value("requests_answered_total")


def test_a_sampler_that_waits_says_for_what(running, look, found, broker_url):
    _, _, buffer, _ = system(running, broker_url)
    limiter, ended = RateLimiter(min_size=1000), threading.Event()
    waiting = InThread(lambda: limiter.wait(buffer, 8, stopping=ended.is_set))
    snapshot = found(lambda s: s.server("trainer:5555").waits, "what the trainer waits for")
    assert snapshot.server("trainer:5555").waits[0].startswith("20 of 1,000 transitions inserted")
    ended.set()
    with pytest.raises(Closed):
        waiting.result()
    found(lambda s: not s.server("trainer:5555").waits, "the end of the wait")


def test_a_node_that_does_nothing_says_since_when(running, look, found, broker_url):
    system(running, broker_url)
    snapshot = found(lambda s: (s.server("trainer:5555").idle_s or 0) > 1.0, "a second of rest")
    assert snapshot.server("trainer:5555").beat_s < snapshot.server("trainer:5555").idle_s + 2


def test_reports_travel_and_call_back(running, look, found, broker_url):
    server, *_ = system(running, broker_url)
    reports = []
    server.telemetry.on_report(lambda values, step: reports.append((values, step)))
    server.telemetry.report({"critic_loss": np.float32(0.5)}, step=7)
    assert reports == [({"critic_loss": 0.5}, 7)]
    found(
        lambda s: s.server("trainer:5555").value("reported", name="critic_loss") == 0.5,
        "the report",
    )


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"'loss' is a ndarray"):
        Telemetry("trainer").report({"loss": np.zeros(3)})


def test_a_source_that_fails_does_not_end_the_others():
    telemetry = Telemetry("trainer")

    def broken():
        raise RuntimeError("no number today")

    telemetry.collect(broken)
    telemetry.report({"return": 1})
    assert [s.value for s in telemetry.samples()] == [1.0]


def test_only_finite_numbers_travel():
    telemetry = Telemetry("trainer")
    telemetry.report({"loss": float("nan"), "return": 2.0})
    assert telemetry.told()["samples"] == [["reported", {"name": "return"}, 2.0]]


def test_names_follow_the_conventions():
    for name, metric in METRICS.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert metric.help.endswith("."), name
