"""What is wrong in a system, and what two snapshots tell of it."""

import json
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore, RateLimiter, ReplayBuffer
from agentlace.operating import problems, report
from agentlace.telemetry import Sample
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import Retention
from tests.services.support import Program

TRAINER = """
from agentlace import TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore
server = TrainerServer(TrainerConfig())
server.register_data_store("env", QueuedDataStore(10))
server.start(threaded=True)
print("up", flush=True)
input()
"""


@pytest.fixture
def system(running, found, broker_url):
    """A trainer, an actor that has sent 20 transitions, and a snapshot of both."""
    buffer, queue = ReplayBuffer(1000), QueuedDataStore(1000)
    server = running(TrainerServer(TrainerConfig(), broker=broker_url))
    server.register_data_store("env", buffer, Retention(max_bytes=100_000))
    server.start(threaded=True)
    client = running(
        TrainerClient(
            "env", "localhost", TrainerConfig(), queue, broker=broker_url, actor_id="robot"
        )
    )
    for number in range(20):
        queue.insert({"observations": np.full(500, number, np.float32)})
        assert client.update_datastore("env", -1)
    server.publish_network({"w": np.zeros(3)})
    client.recv_network_callback(lambda network: None)
    snapshot = found(
        lambda s: (
            s.clients("trainer:5555")
            and s.clients("trainer:5555")[0].value("network_version")
            and s.server("trainer:5555").value("transitions_applied_total") == 20
            and not s.stores[0].behind
        ),
        "the numbers of both ends",
    )
    return server, buffer, snapshot


def changed(snapshot, is_server, samples=(), **fields):
    """Return a snapshot in which one end says something else."""
    peers = list(snapshot.peers)
    (at,) = [number for number, peer in enumerate(peers) if peer.is_server == is_server]
    told = tuple(s for s in peers[at].samples if s.name not in {new.name for new in samples})
    peers[at] = replace(peers[at], samples=(*told, *samples), **fields)
    return replace(snapshot, peers=tuple(peers))


def kinds(snapshot):
    return [(problem.kind, problem.where) for problem in problems(snapshot)]


def test_a_healthy_system_has_no_problem(system):
    assert kinds(system[2]) == []


def test_ends_that_do_not_fit_together(system):
    healthy = system[2]
    assert kinds(changed(healthy, False, version="0.0.9")) == [("version", "actor robot")]
    config = {**healthy.server("trainer:5555").config, "version": "7"}
    assert kinds(changed(healthy, False, config=config)) == [("config", "actor robot")]
    assert kinds(changed(healthy, True, stores={"demos": {}})) == [("unknown store", "actor robot")]


def test_an_old_network(system):
    newest = changed(system[2], True, [Sample("network_version", 9.0)])
    assert kinds(newest) == [], "it was only just published"
    old = changed(newest, False, [Sample("network_age_seconds", 60.0)])
    (problem,) = problems(old)
    assert (problem.kind, problem.where) == ("old network", "actor robot")
    assert problem.text == "acts with network 1 (60 s old), the newest is 9"
    (actor,) = [n for n in report(old, old).services[0].nodes if not n.is_server]
    assert (actor.policy.version, actor.policy.age_s, actor.policy.behind) == (1, 60.0, 8)


def test_a_broker_that_is_full_or_forgets(system):
    healthy = system[2]
    full = replace(healthy.broker, used_bytes=90, max_bytes=100, policy="allkeys-lru")
    assert kinds(replace(healthy, broker=full))[:2] == [
        ("broker full", "broker"),
        ("policy", "broker"),
    ]


def test_a_trainer_that_stands_still_is_late_and_then_gone(running, found, broker_url):
    trainer = running(Program(TRAINER, broker=broker_url))
    trainer.line("up")
    running(TrainerClient("env", "localhost", TrainerConfig(), broker=broker_url))
    trainer.process.send_signal(signal.SIGSTOP)
    late = found(lambda s: kinds(s), "that it does not get on")
    assert kinds(late) == [("late", "trainer:5555")]
    assert f"pid {trainer.process.pid}" in problems(late)[0].text
    gone = found(lambda s: kinds(s) != kinds(late), "that its presence has ended")
    assert kinds(gone) == [("gone", "trainer:5555")]
    assert "1 of its clients are there" in problems(gone)[0].text
    trainer.process.send_signal(signal.SIGCONT)
    found(lambda s: not kinds(s), "that it goes on")


def test_a_consumer_that_is_gone_and_a_store_that_it_fills(system, running, found, broker_url):
    _, _, _ = system
    broker = Broker(BrokerURL.parse(broker_url))
    keys = ServiceKeys(broker.url.namespace, "trainer", 5555).store("env")
    channel = broker.channel()
    channel.call("SADD", keys.consumers, "recorder:pick")
    snapshot = found(lambda s: problems(s), "who is behind")
    (behind,) = problems(snapshot)
    assert (behind.kind, behind.where) == ("behind", "store env")
    assert "consumer recorder:pick, 20 transitions behind (not seen for days" in behind.text
    assert behind.hint.endswith("agentlace consumers forget recorder:pick")
    (store,) = snapshot.stores
    nearly = replace(store, budget_bytes=int(1.1 * store.nbytes))
    (full, _) = problems(replace(snapshot, stores=(nearly,)))
    assert (full.kind, full.where) == ("store full", "store env")
    assert "update() waits" in full.text and "recorder:pick" in full.text
    channel.close()


def test_a_learner_that_waits_and_how_fast_all_flows(system, found, look):
    _, buffer, before = system
    limiter = RateLimiter(samples_per_insert=2)
    for _ in range(4):
        limiter.wait(buffer, 10)
        buffer.sample(10)
    after = found(
        lambda s: (
            s.server("trainer:5555").value("store_sampled_total") == 40
            and s.clients("trainer:5555")[0].told_ms > before.clients("trainer:5555")[0].told_ms
        ),
        "what was sampled",
    )
    told = report(before, after)
    server, actor = told.services[0].nodes
    servers = [s.server("trainer:5555") for s in (before, after)]
    seconds = (servers[1].told_ms - servers[0].told_ms) / 1000
    assert server.rates["store_sampled"] == pytest.approx(40 / seconds)
    assert actor.rates["transitions_sent"] == 0
    assert (server.lag, actor.lag, server.state) == (0, 0, "alive")
    json.dumps(asdict(told), allow_nan=False)


def test_a_trainer_without_actors_waits_for_one(running, found, broker_url):
    server = running(TrainerServer(TrainerConfig(), broker=broker_url))
    server.register_data_store("env", QueuedDataStore(10))
    server.start(threaded=True)
    snapshot = found(lambda s: s.server("trainer:5555"), "the trainer")
    assert report(snapshot, snapshot).services[0].nodes[0].waits == ["an actor: none is there"]


def test_what_was_dropped_and_why(system):
    lost = Sample("transitions_lost_total", 7.0, {"store": "env"})
    snapshot = changed(system[2], False, [lost])
    (drop,) = report(snapshot, snapshot).drops
    assert (drop.node, drop.kind, drop.store) == ("robot", "transitions_lost", "env")
    assert (drop.count, drop.reason) == (7, "overwritten in the actor's store")
