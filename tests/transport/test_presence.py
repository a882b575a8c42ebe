"""Presence: who is there, and that of one identity only one serves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transport_support import DEADLINE_S, broker_at, channel_to, kill_clients, once, wait_until

from agentlace.errors import AlreadyServed, BrokerUnreachable, DecodeError
from agentlace.transport import identity
from agentlace.transport import presence as presence_module
from agentlace.transport.identity import describe
from agentlace.transport.keys import LEASE_MS, SEEN_MS
from agentlace.transport.presence import Presence, absent, read_peer

PROGRAM = Path(__file__).with_name("presence_server.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let hearts beat faster than is sensible."""
    monkeypatch.setattr(presence_module, "HEARTBEAT_S", 0.05)


@pytest.fixture
def serve(broker, keys):
    """Return a function that makes servers' presences; they end with the test."""
    with contextlib.ExitStack() as stack:

        def serve(at=None, start=True, exclusive=True, **kwargs):
            info = describe("server", keys.name, exclusive=exclusive)
            presence = Presence(at or broker, keys.server, info, keys.seen, **kwargs)
            stack.callback(presence.stop)
            presence.acquire(exclusive)
            if start:
                presence.start()
            return presence

        yield serve


@contextlib.contextmanager
def in_a_process(url, namespace):
    process = subprocess.Popen(
        [sys.executable, PROGRAM, str(url), namespace], stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        assert process.stdout.readline() == "there\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def test_a_server_says_who_it_is(serve, channel, keys):
    assert read_peer(channel, keys.server) is None
    server = serve()
    found = read_peer(channel, keys.server)
    assert found == server.info
    assert found["pid"] == os.getpid()
    assert found["role"] == "server"
    assert 0 < channel.call("PTTL", keys.server) <= LEASE_MS


def test_its_heart_beats(serve, channel, keys):
    server = serve()
    first = read_peer(channel, keys.server)["progress_ms"]
    wait_until(lambda: read_peer(channel, keys.server)["progress_ms"] > first)
    server.info["stores"] = {"env": 1}
    wait_until(lambda: read_peer(channel, keys.server).get("stores"))
    server.info["stores"] = {"env": 2}
    server.beat()
    assert read_peer(channel, keys.server)["stores"] == {"env": 2}


def test_a_goodbye_is_at_once(serve, channel, keys):
    server = serve()
    assert server.is_running
    server.stop()
    assert read_peer(channel, keys.server) is None
    server.stop()


def test_who_served_last_is_known(serve, channel, keys):
    assert "never seen" in str(absent(channel, keys))
    serve().stop()
    error = absent(channel, keys)
    assert f"pid {os.getpid()}" in error.last_seen
    assert keys.name in str(error)
    assert LEASE_MS < channel.call("PTTL", keys.seen) <= SEEN_MS


def test_a_second_server_is_refused(serve, keys):
    serve()
    with pytest.raises(AlreadyServed, match=f"pid {os.getpid()}.*use another port_number"):
        serve()


def test_of_several_that_start_at_once_one_serves(serve):
    outcomes = []

    def start():
        try:
            outcomes.append(serve())
        except AlreadyServed as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(outcome, AlreadyServed) for outcome in outcomes) == [
        False,
        *[True] * 3,
    ]


def test_servers_that_share_the_work_may_be_many(serve, channel, keys):
    servers = [serve(exclusive=False) for _ in range(3)]
    wait_until(lambda: read_peer(channel, keys.server))
    servers[0].stop()
    wait_until(lambda: read_peer(channel, keys.server))
    assert not any(server.replaced.is_set() for server in servers)


@once
def test_a_dead_servers_place_is_taken_at_once(broker_url, namespace, serve, keys):
    """It ran on this machine, and its process is gone: nobody need wait for its lease."""
    broker = broker_at(broker_url)
    with in_a_process(broker_url, namespace) as process, channel_to(broker_url) as channel:
        with pytest.raises(AlreadyServed, match=f"pid {process.pid}"):
            serve(broker)
        process.kill()
        process.wait()
        assert read_peer(channel, keys.server)["pid"] == process.pid
        began = time.monotonic()
        serve(broker)
        assert time.monotonic() - began < LEASE_MS / 1000
        assert read_peer(channel, keys.server)["pid"] == os.getpid()


def pretend(channel, key, **changes):
    """Announce a server that is not there; return what it says of itself."""
    info = describe("server", "trainer:5555", exclusive=True, progress_ms=1) | changes
    channel.call("SET", key, json.dumps(info), "PX", LEASE_MS)
    return info


@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({"pid": 1 << 22}, True),
        ({"pid": 1 << 22, "host": "another name of this machine"}, True),
        ({"started": "1"}, True),
        ({}, False),
        ({"pid": 1 << 22, "machine": "another robot of the same name"}, False),
        ({"pid": 1 << 22, "machine": ""}, False),
        ({"pid": 1}, False),
    ],
)
def test_only_a_certain_death_frees_the_place(serve, channel, keys, changes, is_dead):
    if sys.platform != "linux" and is_dead:
        pytest.skip("needs /proc")
    if changes.get("pid") == 1:
        changes = changes | {"started": identity._start_time(1)}
    pretend(channel, keys.server, **changes)
    probe = Presence(channel.broker, keys.server, describe("server", keys.name), keys.seen)
    with contextlib.closing(probe._channel):
        assert probe._try_acquire() is is_dead


def test_a_lease_that_runs_out_is_waited_for(serve, channel, keys):
    pretend(channel, keys.server, machine="another one, that lost its power")
    channel.call("PEXPIRE", keys.server, 300)
    serve()
    assert read_peer(channel, keys.server)["pid"] == os.getpid()


@once
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_server_that_was_replaced_while_it_stood_still_ends(broker_url, namespace, keys, serve):
    broker = broker_at(broker_url)
    with in_a_process(broker_url, namespace) as old, channel_to(broker_url) as channel:
        old.send_signal(signal.SIGSTOP)
        channel.call("PEXPIRE", keys.server, 200)
        new = serve(broker)
        old.send_signal(signal.SIGCONT)
        assert old.stdout.readline() == "replaced\n"
        assert old.wait(DEADLINE_S) == 0
        assert read_peer(channel, keys.server)["token"] == new.info["token"]
        assert not new.replaced.is_set()


def test_a_replaced_server_does_not_come_back(serve, channel, keys, caplog):
    errors = []
    server = serve(on_replaced=errors.append)
    pretend(channel, keys.server, token="another", host="elsewhere")
    wait_until(lambda: errors)
    assert isinstance(errors[0], AlreadyServed)
    assert "already served by elsewhere" in caplog.text
    wait_until(lambda: not server._thread.is_alive())
    channel.call("DEL", keys.server)
    server.beat()
    assert read_peer(channel, keys.server) is None
    other = pretend(channel, keys.server)
    server.stop()
    assert read_peer(channel, keys.server) == other


def test_clients_need_no_lease(broker, channel, keys):
    info = describe("client", "robot")
    presence = Presence(broker, keys.client("robot"), info)
    presence.acquire(exclusive=False)
    assert read_peer(channel, keys.client("robot")) == info
    assert channel.call("EXISTS", keys.seen) == 0
    presence.stop()
    assert read_peer(channel, keys.client("robot")) is None


def test_work_is_done_with_each_beat(serve, channel, keys):
    done = []
    serve(on_beat=lambda channel: done.append(bytes(channel.call("PING"))))
    wait_until(lambda: len(done) >= 3)
    assert set(done) == {b"PONG"}


def test_work_that_fails_does_not_stop_the_heart(serve, channel, keys, caplog):
    def fail(_):
        raise RuntimeError("a bug")

    serve(on_beat=fail)
    wait_until(lambda: "the heartbeat's work failed" in caplog.text)
    first = read_peer(channel, keys.server)["progress_ms"]
    wait_until(lambda: read_peer(channel, keys.server)["progress_ms"] > first)


@pytest.mark.parametrize("garbage", [b"garbage", b"[1]", b"7", b"\xff"])
def test_garbage_under_the_key(serve, channel, keys, caplog, garbage):
    channel.call("SET", keys.server, garbage)
    with pytest.raises(DecodeError, match="is damaged"):
        read_peer(channel, keys.server)
    with pytest.raises(DecodeError):
        serve()
    channel.call("DEL", keys.server)
    server = serve()
    channel.call("SET", keys.server, garbage)
    wait_until(lambda: "is damaged" in caplog.text)
    channel.call("DEL", keys.server)
    wait_until(lambda: read_peer(channel, keys.server))
    assert not server.replaced.is_set()


@once
def test_it_comes_back_with_its_broker(own_broker, serve, keys, caplog):
    at = broker_at(own_broker.settings.url)
    server = serve(at)
    own_broker.stop()
    wait_until(lambda: "waits for the broker" in caplog.text)
    own_broker.start()
    wait_until(lambda: "is connected to" in caplog.text)
    with channel_to(own_broker.settings.url) as channel:
        assert wait_until(lambda: read_peer(channel, keys.server)) == server.info
        for _ in range(10):
            kill_clients(channel)
            channel.call("DEL", keys.server)
            wait_until(lambda: read_peer(channel, keys.server))
    assert caplog.text.count("Connection refused") <= 2  # an outage is no flood of lines


@once
def test_a_full_broker_lets_everybody_stay(own_broker, serve, keys):
    """It refuses to write the presence, but not to prolong it."""
    serve(broker_at(own_broker.settings.url))
    with channel_to(own_broker.settings.url) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "1")
        channel.call("PEXPIRE", keys.server, 1000)
        wait_until(lambda: channel.call("PTTL", keys.server) > 2000)
        channel.call("CONFIG", "SET", "maxmemory", "0")


@once
def test_stop_while_the_broker_does_not_answer(own_broker, serve):
    server = serve(broker_at(own_broker.settings.url))
    os.kill(own_broker.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < presence_module.JOIN_TIMEOUT_S
        assert not server._thread.is_alive()
    finally:
        os.kill(own_broker.pid, signal.SIGCONT)


@once
def test_stop_while_the_broker_is_away(own_broker, serve):
    server = serve(broker_at(own_broker.settings.url))
    own_broker.stop()
    server.stop()
    assert not server._thread.is_alive()
    with pytest.raises(BrokerUnreachable):
        serve(broker_at(own_broker.settings.url))
