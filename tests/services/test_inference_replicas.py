"""Several servers of one number: they share calls, and see to those of one that is lost."""

import contextlib
import signal

import pytest

from agentlace import InferenceClient, InferenceServer, RemoteError
from agentlace.config import BrokerURL
from agentlace.operating import take
from agentlace.transport.connection import Broker
from agentlace.transport.inflight import Intake
from agentlace.transport.keys import LEASE_MS, ServiceKeys
from agentlace.transport.replicas import AGAIN_MAX, Replicas

from .inference_support import PORT, TIMEOUT_MS, Function, waiting
from .support import InThread, Program, holds_for, wait_until

SERVER = """
import os, sys, threading
from agentlace import InferenceServer
from agentlace.transport.keys import ServiceKeys

held = threading.Event()
def policy(payload):
    print("called with", payload, flush=True)
    if payload == "die":
        os._exit(1)
    if payload == "hold" and sys.argv[2] == "holds":
        held.wait(60)
    return [sys.argv[1], payload]

def batched(payload):
    return {"by": sys.argv[1], "twice": payload * 2}

server = InferenceServer(7100)
settings = {"idempotent": "idempotent" in sys.argv}
server.register_interface("policy", policy, **settings)
server.register_interface("batched", batched, batch=True, idempotent=True)
server.start(threaded=True)
print("serves", flush=True)
for line in sys.stdin:
    held.set()
"""


@pytest.fixture
def spawn(running, broker_url):
    """Return a function that starts servers in processes of their own."""

    def spawn(name, holds=False, idempotent=True):
        words = ["holds" if holds else "answers", "idempotent" if idempotent else "once"]
        program = running(Program(SERVER, name, *words, broker=broker_url))
        program.line("serves")
        return program

    return spawn


@pytest.fixture
def client(running, broker_url):
    return running(
        InferenceClient("x", PORT, broker=broker_url, timeout_ms=TIMEOUT_MS, strict=True)
    )


@pytest.fixture
def keys(namespace):
    return ServiceKeys(namespace, "inference", PORT)


@pytest.fixture
def channel(broker_url, running):
    return running(contextlib.closing(Broker(BrokerURL.parse(broker_url)).channel()))


def in_flight(channel, keys):
    """Return how many requests are in the places of all servers."""
    found = channel.call("KEYS", keys.inflight("*", 0).replace("{", "[{]")[:-1] + "*")
    return len(found)


def held_call(program, client):
    """Make a call that the program holds."""
    call = InThread(lambda: client.call("policy", "hold"))
    program.line("called with hold")
    return call


def test_a_call_of_a_killed_server_is_made_by_another(spawn, client, channel, keys):
    lost = spawn("lost", holds=True)
    call = held_call(lost, client)
    spawn("other")
    assert in_flight(channel, keys) == 1
    lost.kill()
    assert call.result() == ["other", "hold"]
    wait_until(lambda: in_flight(channel, keys) == 0, what="empty places")
    wait_until(lambda: channel.call("HLEN", keys.servers) == 1, what="the lost one struck off")
    assert client.call("policy", 1) == ["other", 1]


def test_a_restarted_server_makes_the_call_of_the_one_before_it(spawn, client):
    lost = spawn("lost", holds=True)
    call = held_call(lost, client)
    lost.kill()
    spawn("restarted")
    assert call.result() == ["restarted", "hold"]


def test_a_call_that_may_not_be_repeated_is_answered(spawn, client):
    spawn("other", idempotent=False)
    lost = spawn("lost", holds=True, idempotent=False)
    calls = []
    while not any("called with hold" in line for line in lost.lines):
        calls.append(InThread(lambda: client.call("policy", "hold")))
        wait_until(
            lambda: not calls[-1].is_running or any("hold" in line for line in lost.lines),
            what="an answer, or the lost server's turn",
        )
    lost.kill()
    with pytest.raises(RemoteError, match="not declared idempotent=True") as caught:
        calls[-1].result()
    assert caught.value.type == "ServerLost"
    assert client.call("policy", 1) == ["other", 1]


def test_batched_calls_of_a_killed_server_are_not_lost(spawn, client, running, broker_url):
    """Under load: each call is answered, and rightly, whichever server is killed with it."""
    servers = [spawn("a"), spawn("b")]
    args = dict(broker=broker_url, timeout_ms=TIMEOUT_MS, strict=True)
    clients = [running(InferenceClient("x", PORT, **args)) for _ in range(6)]
    done, stop = [0] * len(clients), []

    def work(number, client):
        while not stop:
            answer = client.call("batched", number)
            assert answer["twice"] == 2 * number
            done[number] += 1

    workers = [InThread(lambda n=n, c=c: work(n, c)) for n, c in enumerate(clients)]
    wait_until(lambda: min(done) > 20, what="calls by all clients")
    servers[0].kill()
    before = list(done)
    after = [n + 20 for n in before]
    wait_until(lambda: all(d > a for d, a in zip(done, after, strict=True)), what="more calls")
    stop.append(True)
    for worker in workers:
        worker.result()


def test_nobodys_call_is_lost_when_a_server_is_terminated(spawn, running, broker_url):
    servers = [spawn("a", idempotent=False), spawn("b", idempotent=False)]
    args = dict(broker=broker_url, timeout_ms=TIMEOUT_MS, strict=True)
    clients = [running(InferenceClient("x", PORT, **args)) for _ in range(4)]
    answered, stop = [[] for _ in clients], []

    def work(number, client):
        while not stop:
            name = "policy" if len(answered[number]) % 2 else "batched"
            answer = client.call(name, number)
            answered[number].append(answer[0] if name == "policy" else answer["by"])

    workers = [InThread(lambda n=n, c=c: work(n, c)) for n, c in enumerate(clients)]

    def have_both():
        return all({"a", "b"} <= set(answers) for answers in answered)

    wait_until(have_both, what="answers of both servers to all clients")
    servers[0].process.send_signal(signal.SIGTERM)
    assert servers[0].wait() == -signal.SIGTERM
    before = [len(answers) for answers in answered]
    wait_until(
        lambda: all(len(a) > n + 20 for a, n in zip(answered, before, strict=True)),
        what="answers of the other server",
    )
    stop.append(True)
    for worker in workers:
        worker.result()
    assert all(set(a[n + 5 :]) == {"b"} for a, n in zip(answered, before, strict=True))


def test_a_terminated_server_answers_what_it_has_taken(spawn, client, channel, keys):
    server = spawn("only", holds=True)
    call = held_call(server, client)
    server.process.send_signal(signal.SIGTERM)
    holds_for(lambda: server.process.poll() is None and call.is_running, 0.2, "its drain")
    server.tell("release")
    assert call.result() == ["only", "hold"]
    assert server.wait() == -signal.SIGTERM
    assert in_flight(channel, keys) == 0
    assert channel.call("EXISTS", keys.servers, keys.server) == 0


def test_what_kills_its_servers_is_given_up(spawn, client):
    """A call that may be repeated, and of which each server dies."""
    call = InThread(lambda: client.call("policy", "die"))
    for number in range(AGAIN_MAX + 1):
        victim = spawn(f"victim {number}")
        victim.line("called with die")
        assert victim.wait() == 1
    spawn("survivor")
    with pytest.raises(RemoteError, match=f"{AGAIN_MAX + 1} servers that had taken this call"):
        call.result()
    assert client.call("policy", 1) == ["survivor", 1]


# -- presence --------------------------------------------------------------------------------------


def start(running, broker_url, function=list):
    server = running(InferenceServer(PORT, broker=broker_url))
    server.register_interface("policy", function)
    server.start(threaded=True)
    return server


def test_the_service_is_there_as_long_as_one_of_its_servers(running, broker_url, channel, keys):
    servers = [start(running, broker_url) for _ in range(3)]
    assert channel.call("HLEN", keys.servers) == 3
    for server in servers[:-1]:
        server.stop()
        assert channel.call("EXISTS", keys.server) == 1
    servers[-1].stop()
    assert channel.call("EXISTS", keys.server, keys.servers) == 0


def test_each_server_is_listed_once(running, broker_url, channel, namespace):
    servers = [start(running, broker_url) for _ in range(2)]
    found = [p for p in take(channel, namespace).peers if p.is_server]
    assert {p.token for p in found} == {s._presence.info["token"] for s in servers}
    assert len(found) == 2 and all(p.service == f"inference:{PORT}" for p in found)


def test_a_single_server_with_plain_interfaces_moves_nothing(running, broker_url, channel, keys):
    """It is as fast as ever; with a second one both keep what they have taken."""
    function = Function(lambda payload: payload)
    first = start(running, broker_url, function)
    client = running(InferenceClient("x", PORT, broker=broker_url, timeout_ms=TIMEOUT_MS))
    with function.held(lambda: client.call("policy", 1)):
        assert in_flight(channel, keys) == 0
    start(running, broker_url, function)
    wait_until(lambda: first._intake.moves, what="the first server to move requests")
    with function.held(lambda: client.call("policy", 1)):
        assert in_flight(channel, keys) == 1


def test_one_that_was_away_for_a_moment_is_not_taken_for_lost(channel, keys):
    """After the broker was away, a server may be in the hash before its presence is there."""
    intake = Intake(keys, "mine", 4)
    replicas = Replicas(keys, "mine", intake, lambda name: True)
    channel.call("HSET", keys.servers, "theirs", 4)
    channel.call("RPUSH", keys.inflight("theirs", 0), b"damaged")
    replicas.look(channel)
    assert channel.call("HLEN", keys.servers) == 2 and intake.wanted
    replicas.look(channel)
    assert channel.call("HLEN", keys.servers) == 1
    assert channel.call("EXISTS", keys.inflight("theirs", 0)) == 0


def test_a_stopped_servers_presence_does_not_wait_for_its_lease(running, broker_url, channel, keys):
    server = start(running, broker_url)
    assert 0 < channel.call("PTTL", keys.replica(server._presence.info["token"])) <= LEASE_MS
    token = server._presence.info["token"]
    server.stop()
    assert channel.call("EXISTS", keys.replica(token)) == 0


@pytest.mark.parametrize("any_broker_url", ["cluster"], indirect=True)
def test_servers_share_calls_in_a_cluster(room, any_broker_url, running):
    """All that they must do at once is in one slot."""
    function = Function(lambda payload: payload)
    server = room.server("policy", function, batch=True, idempotent=True, max_queue=8)
    lines = [room.client()._requests for _ in range(4)]
    with function.held(lambda: room.client().call("policy", 9)):
        calls = room.calls(lines, "policy", range(4))
        wait_until(lambda: waiting(server) == 4, what="four waiting calls")
        other = room.server("policy", lambda payload: payload, batch=True, idempotent=True)
        server.drain(timeout_s=0.1)
        assert [call.result() for call in calls] == list(range(4))
        wait_until(lambda: other._replicas.others == 0, what="the first one struck off")
    assert function.calls == [9]
