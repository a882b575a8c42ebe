"""``agentlace tail``: reading along without taking part."""

import contextlib
import itertools
import json
import threading

import numpy as np
import pytest

from agentlace import InferenceClient, InferenceServer
from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import keys_of
from tests.cli.operated import Command, insert, robot, run, trainer_and_actor
from tests.services.secured import SecuredBroker, servers
from tests.services.support import InThread, wait_until


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def keys_now(broker_url):
    """Return all keys of the namespace but those that come and go with nodes."""
    broker = Broker(BrokerURL.parse(broker_url))

    def keys_now():
        with contextlib.closing(broker.channel()) as channel:
            return set(keys_of(channel, broker.url.namespace))

    return keys_now


def test_what_a_stream_holds(broker_environment, keys_now):
    with trainer_and_actor() as (_, client, queue):
        insert(client, queue, 3)
        client.begin_episode({"task": "pick"})
        assert client.update()
        before = keys_now()
        told = lines_of(
            run("tail", "stream", "env", "--from", "start", "-n", 4, "--json", "--values")
        )
        assert keys_now() == before, "nothing is registered"
        text = run("tail", "stream", "env", "--from", "start", "-n", 4, "--values")
    chunks, mark = told[:3], told[3]
    assert [(c["kind"], c["actor"], c["first"], c["last"]) for c in chunks] == [
        ("chunk", "robot-1", number, number) for number in (1, 2, 3)
    ]
    assert chunks[1]["values"][0]["rewards"] == 1.0 and chunks[1]["missing"] == 0
    assert (mark["kind"], mark["what"], mark["episode"]) == ("mark", "begin", 1)
    assert mark["metadata"] == {"task": "pick"}
    assert "robot-1  2  1 transition  " in text.stdout
    assert "    2 observations: float32[3] min 1 max 1: [1, 1, 1]" in text.stdout
    assert "episode 1 begin" in text.stdout
    assert text.stderr.startswith("3 transitions in 4 chunks")


def test_what_comes_from_now_on_and_the_policy_that_acted(broker_environment):
    with trainer_and_actor() as (server, client, queue):
        insert(client, queue, 2)
        server.publish_network({"w": np.zeros(2)})
        client.recv_network_callback(lambda network: None)
        wait_until(lambda: client.policy_version == 1)
        with Command("tail", "stream", "env", "--json") as tail:
            done = threading.Event()

            def play():
                for number in itertools.count(2):
                    if done.wait(0.01):
                        return
                    insert(client, queue, 1, number)

            playing = InThread(play)
            chunk = json.loads(tail.line('"chunk"'))
            done.set()
            playing.result()
            code, _, err = tail.interrupt()
    assert chunk["first"] > 2 and chunk["policy"] == 1 and chunk["transitions"] == 1
    assert code == 0 and "transitions in" in err and "Traceback" not in err


def test_only_one_actor_and_what_was_dropped(broker_environment, broker_url, namespace):
    with trainer_and_actor() as (_, client, queue):
        insert(client, queue, 6)
        channel = Broker(BrokerURL.parse(broker_url)).channel()
        keys = ServiceKeys(namespace, "trainer", 5555).store("env")
        entries = channel.call("XRANGE", keys.stream("robot-1"), "-", "+")
        channel.call("XDEL", keys.stream("robot-1"), bytes(entries[2][0]).decode())
        channel.close()
        told = lines_of(
            run(
                *("tail", "stream", "env", "--from", "start", "--actor", "robot-1"),
                *("-n", 5, "--json"),
            )
        )
    assert [chunk["missing"] for chunk in told] == [0, 0, 1, 0, 0]


def test_an_actor_that_is_not_there(broker_environment):
    with trainer_and_actor() as (_, client, queue):
        insert(client, queue, 1)
        with Command("tail", "stream", "env", "--actor", "other", "--from", "start") as tail:
            assert "waits for actor other of store 'env'" in tail.process.stderr.readline()
            code, out, err = tail.interrupt()
    assert (code, out) == (0, "") and err.startswith("0 transitions in 0 chunks")


def test_a_broadcast(broker_environment):
    with robot() as (server, _):
        done = threading.Event()

        def play():
            number = 0
            while not done.wait(0.01):
                number += 1
                large = np.zeros((200, 200, 3), np.uint8) if number % 2 else np.zeros(3)
                server.publish_obs({"image": large, "number": number})

        playing = InThread(play)
        told = lines_of(run("tail", "obs", 5556, "-n", 6, "--json", "--values"))
        text = run("tail", "obs", 5556, "-n", 3)
        done.set()
        playing.result()
    numbers = [seen["number"] for seen in told]
    assert numbers == sorted(set(numbers))
    assert all(seen["values"]["number"] == seen["number"] for seen in told)
    gaps = [after - before - 1 for before, after in itertools.pairwise(numbers)]
    assert [seen["missed"] for seen in told[1:]] == gaps
    sizes = {seen["structure"]: seen["bytes"] for seen in told}
    assert sizes["image uint8[200, 200, 3], number int"] > 120_000
    assert "each has: image " in text.stdout
    assert text.stderr.startswith("3 observations, ")


def test_requests_that_wait_are_seen_and_not_taken(broker_environment):
    may = threading.Event()
    with InferenceServer(5600) as server:
        server.register_interface("slow", lambda payload: may.wait(20))
        server.start(threaded=True)
        clients = [InferenceClient("localhost", 5600, timeout_ms=20_000) for _ in range(2)]
        calls = [InThread(lambda c=c: c.call("slow", {"x": np.arange(3)})) for c in clients]
        told = run("tail", "requests", "inference:5600", "-n", 1, "--json", "--values")
        may.set()
        assert [call.result() for call in calls] == [True, True]
        for client in clients:
            client.stop()
    (request,) = lines_of(told)
    assert (request["what"], request["name"]) == ("call", "slow")
    assert 0 < request["left_s"] <= 20
    assert request["payload"] == {"x": {"$array": [0, 1, 2], "dtype": "int64"}}


def test_how_many_a_server_answers(broker_environment):
    with InferenceServer(5600) as server, Command("tail", "requests", "inference:5600") as tail:
        server.register_interface("fast", lambda payload: payload)
        server.start(threaded=True)
        with InferenceClient("localhost", 5600) as client:
            done = threading.Event()

            def play():
                while not done.wait(0.01):
                    client.call("fast", 1)

            playing = InThread(play)
            assert "answered/s, 0 waiting" in tail.line(" answered/s")
            done.set()
            playing.result()


@pytest.mark.parametrize(
    "what, gap", [(["stream", "env", "--from", "start"], "missing"), (["obs", 5556], "missed")]
)
def test_an_observer_may_read_along(tmp_path, what, gap, monkeypatch):
    with SecuredBroker(tmp_path / "broker", next(servers())) as broker:
        monkeypatch.setenv("AGENTLACE_BROKER", broker.url("admin"))
        observer = ("--broker", broker.url("observer"))
        with trainer_and_actor() as (_, client, queue), robot() as (server, _):
            insert(client, queue, 2)
            with Command("tail", *what, "--json", *observer) as tail:
                done = threading.Event()

                def play():
                    while not done.wait(0.02):
                        server.publish_obs({"state": np.zeros(3)})

                playing = InThread(play)
                assert json.loads(tail.line("bytes"))[gap] == 0
                done.set()
                playing.result()
            assert run("status", "--json", *observer).exit_code == 0
            assert not [refused for refused in broker.refusals() if refused[0] == "observer"]
