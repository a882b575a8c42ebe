"""Safety of a robot that others drive: the action watchdog, and exclusive control."""

import contextlib
import itertools
import json
import logging
import os
import threading
import time

import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.errors import AgentlaceError, Closed, ControlHeld, RemoteError, RequestTimeout
from agentlace.transport import identity
from agentlace.transport.keys import HEARTBEAT_S, LEASE_MS, ServiceKeys

from .support import InThread, Log, LossyProxy, Program, holds_for, stay_on_tcp, wait_until

CONFIG = ActionConfig(5556, ["move", "stop"], ["pose"], broadcast_port=5557)
on_redis = pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)


@pytest.fixture
def serve(running, any_broker_url):
    def serve(act=lambda key, payload: {"did": payload}, obs=lambda keys: {"pose": 1}, start=True):
        server = running(ActionServer(CONFIG, obs, act, broker=any_broker_url))
        if start:
            server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(at=any_broker_url, timeout_ms=5000, **kwargs):
        return running(
            ActionClient("localhost", CONFIG, broker=at, timeout_ms=timeout_ms, **kwargs)
        )

    return connect


# -- the watchdog ----------------------------------------------------------------------------------


@on_redis
def test_it_calls_once_after_each_silence(serve, connect):
    acted, calls = Log(), Log()
    server, client = serve(act=lambda key, payload: acted(time.monotonic())), connect()
    server.watch_actions(100, lambda: calls(time.monotonic()))
    holds_for(lambda: not calls, 0.2)  # nobody has moved the robot yet
    for number in (1, 2, 3):
        client.act("move")
        calls.wait(number)
        assert calls[-1] >= acted[-1] + 0.1
        holds_for(lambda n=number: len(calls) == n, 0.25)
    client.obs()
    holds_for(lambda: len(calls) == 3, 0.15)  # only actions count


@on_redis
def test_actions_keep_it_quiet(serve, connect):
    acted, calls = Log(), Log()
    server, client = serve(act=lambda key, payload: acted(time.monotonic())), connect()
    server.watch_actions(1000, lambda: calls(1))
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        client.act("move")
    longest_s = max(after - before for before, after in itertools.pairwise(acted))
    assert not calls or longest_s > 0.9  # a machine that stood still


@on_redis
def test_an_action_that_is_being_executed_is_no_silence(serve, connect):
    gate, entered, calls = threading.Event(), threading.Event(), Log()

    def act(key, payload):
        entered.set()
        assert gate.wait(20)

    server, client = serve(act=act), connect(timeout_ms=20_000)
    server.watch_actions(50, lambda: calls(1))
    acting = InThread(lambda: client.act("move"))
    assert entered.wait(10)
    holds_for(lambda: not calls, 0.2)
    gate.set()
    acting.result()
    calls.wait(1)
    entered.clear()
    gate.clear()
    acting = InThread(lambda: client.act("move"))  # armed by now, or not: it makes no difference
    assert entered.wait(10)
    holds_for(lambda: len(calls) == 1, 0.2)
    gate.set()
    acting.result()
    calls.wait(2)


@on_redis
def test_an_action_waits_while_it_calls(serve, connect):
    gate, entered, done = threading.Event(), threading.Event(), Log()

    def hold():
        entered.set()
        assert gate.wait(20)
        done("held")

    server = serve(act=lambda key, payload: done(payload))
    client = connect(timeout_ms=20_000)
    server.watch_actions(50, hold)
    client.act("move", "first")
    assert entered.wait(10)
    acting = InThread(lambda: client.act("move", "second"))
    holds_for(lambda: done == ["first"], 0.1)
    gate.set()
    acting.result()
    assert done == ["first", "held", "second"]


@on_redis
def test_a_camera_that_hangs_does_not_keep_it_from_calling(serve, connect):
    gate, entered, calls = threading.Event(), threading.Event(), Log()

    def obs(keys):
        entered.set()
        assert gate.wait(20)
        return {"pose": 1}

    server, client = serve(obs=obs), connect(timeout_ms=20_000)
    server.watch_actions(300, lambda: calls(1))
    client.act("move")
    server.publish_at(100)
    assert entered.wait(10)
    acting = InThread(lambda: client.act("move"))  # waits for the camera
    calls.wait(1)
    assert acting.is_running
    gate.set()
    acting.result()


@on_redis
def test_a_callback_that_raises_is_logged_and_called_again(serve, connect, caplog):
    calls = Log()

    def fail():
        calls(1)
        raise RuntimeError("no brake")

    server, client = serve(), connect()
    server.watch_actions(20, fail)
    for number in (1, 2):
        client.act("move")
        calls.wait(number)
    wait_until(lambda: caplog.text.count("no brake\n") == 2)


@on_redis
def test_a_failing_action_counts(serve, connect):
    server, client, calls = serve(act=lambda *_: 1 / 0), connect(), Log()
    server.watch_actions(20, lambda: calls(1))
    assert client.act("move") is None
    calls.wait(1)


@on_redis
def test_the_callback_may_stop_the_server(serve, connect):
    entered = threading.Event()
    server = serve()

    def stop():
        entered.set()
        server.stop()

    client = connect(timeout_ms=1000)
    server.watch_actions(30, stop)
    client.act("move")
    assert entered.wait(10)
    start_s = time.monotonic()
    client.act("move")  # meets a server that ends, in whatever state
    wait_until(lambda: not server.is_running)
    assert time.monotonic() - start_s < 4.5  # no thread waited for the other in vain


@on_redis
def test_a_second_one_takes_the_place_of_the_first_and_it_starts_again(serve, connect):
    server, first, second = serve(start=False), Log(), Log()
    server.watch_actions(20, lambda: first(1))
    server.watch_actions(20, lambda: second(1))
    for number in (1, 2):
        server.start(threaded=True)
        client = connect()
        client.act("move")
        second.wait(number)
        client.act("move")
        server.stop()
        seen = len(second)
        holds_for(lambda n=seen: len(second) == n, 0.1)  # a server that was stopped watches nothing
        del second[number:]
    assert not first
    for timeout_ms in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            server.watch_actions(timeout_ms, print)


@on_redis
def test_actions_and_silences_meet(serve, connect):
    """Whatever comes first: no action runs while the callback does."""
    inside, overlaps, calls = [0], Log(), Log()

    def enter():
        inside[0] += 1
        if inside[0] > 1:
            overlaps(1)
        threading.Event().wait(0.001)
        inside[0] -= 1

    server, client = serve(act=lambda key, payload: enter()), connect()
    server.watch_actions(3, lambda: (enter(), calls(1)))
    for number in range(200):
        client.act("move")
        threading.Event().wait(0.001 * (number % 5))
    calls.wait(10)
    assert not overlaps


# -- exclusive control -----------------------------------------------------------------------------


def test_by_default_every_client_may_act(serve, connect):
    server = serve()
    for client in (connect(), connect()):
        assert client.act("move", 1) == {"did": 1}
        assert not client.has_control and client.controlled_by is None
    assert server.controlled_by is None


@on_redis
def test_who_has_control_acts_alone(serve, connect):
    done = Log()
    server = serve(act=lambda key, payload: done(payload))
    driver, other = connect(), connect()
    with driver.control():
        assert driver.has_control
        assert server.controlled_by.pid == os.getpid()
        driver.act("move", "driver")
        assert other.act("move", "other") is None
        error = other.last_error
        assert isinstance(error, ControlHeld) and isinstance(error, RemoteError)
        for text in ("action:5556", f"pid {os.getpid()}", server.controlled_by.host, "'move'"):
            assert text in str(error)
        assert other.obs() == {"pose": 1}  # looking is for everybody
        wait_until(lambda: other.controlled_by == server.controlled_by)
        for take in (other.take_control, other.control().__enter__):
            with pytest.raises(ControlHeld, match=f"pid {os.getpid()}"):
                take()
        assert not other.has_control
        driver.act("stop", "driver again")
    assert not driver.has_control and server.controlled_by is None
    other.act("move", "other")
    assert done == ["driver", "driver again", "other"]
    wait_until(lambda: other.controlled_by is None)


def test_a_refused_action_raises_if_strict(serve, connect):
    serve()
    with connect().control(), pytest.raises(ControlHeld):
        connect(strict=True).act("move")


@on_redis
def test_a_refused_action_is_no_sign_of_life_and_fills_no_log(serve, connect, caplog):
    server, calls = serve(), Log()
    driver, other = connect(), connect()
    driver.take_control()
    server.watch_actions(200, lambda: calls(1))
    driver.act("move")
    caplog.set_level(logging.WARNING)
    end_s = time.monotonic() + 0.3
    while time.monotonic() < end_s and not calls:
        assert other.act("move") is None
    calls.wait(1)
    assert "Traceback" not in caplog.text
    assert caplog.text.count("another client acts") == 1


@on_redis
def test_control_is_waited_for(serve, connect):
    serve()
    first, second = connect(), connect()
    first.take_control()
    start_s = time.monotonic()
    with pytest.raises(ControlHeld):
        second.take_control(timeout_s=0.3)
    assert time.monotonic() - start_s >= 0.3
    waiting = InThread(lambda: second.take_control(timeout_s=20))
    holds_for(lambda: waiting.is_running, 0.2)
    first.release_control()
    waiting.result()
    assert second.has_control and second.act("move", 1) == {"did": 1}
    assert first.act("move") is None
    waiting = InThread(lambda: first.take_control(timeout_s=20))
    holds_for(lambda: waiting.is_running, 0.1)
    first.stop()
    with pytest.raises(Closed):
        waiting.result()


def test_taking_and_releasing_twice(serve, connect):
    server, client = serve(), connect()
    client.release_control()
    client.take_control()
    client.take_control()
    with client.control():
        pass
    assert client.has_control and server.controlled_by  # the block has not taken it
    client.release_control()
    client.release_control()
    assert server.controlled_by is None
    client.stop()
    with pytest.raises(Closed):
        client.take_control()


def test_the_block_ends_however_it_ends(serve, connect):
    server, client = serve(), connect()
    with pytest.raises(KeyError), client.control():
        raise KeyError
    assert server.controlled_by is None


def test_an_exclusive_client_has_control_while_it_lives(serve, connect):
    server = serve()
    driver = connect(exclusive=True)
    assert driver.has_control and server.controlled_by
    waiting = InThread(lambda: connect(exclusive=True, wait_for_server=True))
    holds_for(lambda: waiting.is_running, 0.3)
    driver.stop()
    assert waiting.result().has_control


def test_of_many_that_take_it_one_has_it(serve, connect):
    serve()
    clients = [connect() for _ in range(6)]

    def taken(client):
        with contextlib.suppress(ControlHeld):
            client.take_control()
            return client

    for _ in range(5):
        found = [t.result() for t in [InThread(lambda c=c: taken(c)) for c in clients]]
        (driver,) = filter(None, found)
        assert [c.has_control for c in clients].count(True) == 1
        driver.release_control()


@on_redis
def test_what_was_refused_and_what_the_watchdog_did_is_told(serve, connect):
    server, calls = serve(), Log()
    server.watch_actions(20, lambda: calls(1))
    driver, other = connect(exclusive=True), connect()
    assert driver.act("move") and other.act("move") is None
    calls.wait(1)
    told = {"actions_refused_total": 1, "watchdog_calls_total": 1}
    wait_until(
        lambda: told.items() <= {s.name: s.value for s in server.telemetry.samples()}.items()
    )


# -- who is gone -----------------------------------------------------------------------------------

DRIVER = """
import sys
from agentlace import ActionClient, ActionConfig
client = ActionClient("x", ActionConfig(5556, ["move", "stop"], ["pose"], broadcast_port=5557))
client.take_control()
print("driving", client.act("move", 1), flush=True)
sys.stdin.readline()
"""


@on_redis
def test_a_driver_that_is_killed_loses_control(serve, connect, broker_url):
    server, other = serve(), connect()
    with Program(DRIVER, broker=broker_url) as driver:
        driver.line("driving {'did': 1}")
        assert server.controlled_by.pid == driver.process.pid
        assert other.act("move") is None
        assert f"pid {driver.process.pid}" in str(other.last_error)
        driver.kill()
        other.take_control(timeout_s=15)
    assert other.act("move", 2) == {"did": 2}


@on_redis
def test_a_driver_that_ends_without_a_word_releases_it(serve, connect, broker_url):
    server = serve()
    with Program(DRIVER, broker=broker_url) as driver:
        driver.line("driving")
        driver.tell("")
        assert driver.wait() == 0
    assert server.controlled_by is None


@on_redis
def test_a_driver_that_is_killed_elsewhere_loses_control(serve, connect, broker_url, monkeypatch):
    """No one can look whether its process lives: its presence has to expire."""
    monkeypatch.setattr(identity, "_machine", lambda: "another machine")
    server, other = serve(), connect()
    with Program(DRIVER, broker=broker_url) as driver:
        driver.line("driving")
        driver.freeze()  # as good as dead
        start_s = time.monotonic()
        other.take_control(timeout_s=20)
        assert time.monotonic() - start_s > LEASE_MS / 1000 - 2
        assert server.controlled_by.pid == os.getpid()


@on_redis
def test_a_driver_that_was_cut_off_takes_control_again(serve, connect, broker_url, monkeypatch):
    stay_on_tcp(monkeypatch)
    done = Log()
    server = serve(act=lambda key, payload: done(payload) or {})
    port = broker_url.rsplit(":", 1)[1].split("?")[0]
    with LossyProxy(int(port)) as proxy:
        driver = connect(at=broker_url.replace(port, str(proxy.port)), exclusive=True)
        other = connect()
        proxy.deaf.set()
        # Its presence goes on arriving, though it hears nothing; so it loses it in earnest:
        with server._lease._lock:
            server._lease._hold(None)
        server._announce_control()
        other.take_control()
        proxy.cut()
        proxy.deaf.clear()
        wait_until(lambda: not driver.has_control, what="the loss")
        wait_until(lambda: driver.act("move", "driver") is None and driver.last_error)
        assert isinstance(driver.last_error, ControlHeld)
        other.release_control()
        wait_until(lambda: driver.act("move", "driver") is not None)
        assert driver.has_control
        assert other.act("move", "other") is None
        driver.stop()
    assert "other" not in done


SERVER = """
import sys
from agentlace import ActionConfig, ActionServer
config = ActionConfig(5556, ["move", "stop"], ["pose"], broadcast_port=5557)
server = ActionServer(config, lambda keys: {"pose": 1}, lambda key, payload: {"by": sys.argv[1]})
server.start(threaded=True)
print("serving", flush=True)
sys.stdin.readline()
"""


@on_redis
def test_a_server_that_is_killed_and_started_anew_knows_who_drives(serve, connect, broker_url):
    with Program(SERVER, "first", broker=broker_url) as first:
        first.line("serving")
        driver, other = connect(exclusive=True), connect()
        assert driver.act("move") == {"by": "first"}
        first.kill()
        server = serve()
        assert server.controlled_by.pid == os.getpid()
        assert other.act("move") is None and isinstance(other.last_error, ControlHeld)
        assert driver.act("move", 2) == {"did": 2}
    server.stop()
    driver.stop()
    server.start(threaded=True)
    assert server.controlled_by is None  # that one is gone
    assert other.act("move", 3) == {"did": 3}


@on_redis
def test_a_broker_that_came_back_empty_changes_nothing(serve, connect):
    """Its presence keys are those of the next beats."""
    server, driver, other = serve(), connect(exclusive=True), connect()
    key = server._keys.client(server.controlled_by.name)
    with contextlib.closing(server._broker.channel(key=key)) as channel:
        channel.call("DEL", key)
        beats = HEARTBEAT_S * 2.5
        holds_for(lambda: server.controlled_by is not None, beats)
    assert driver.has_control and other.act("move") is None


@on_redis
def test_control_that_nobody_wants_any_more_is_released(serve, connect):
    """An answer that came too late has given it."""
    server, driver = serve(), connect()
    driver.take_control()
    driver._claim.is_wanted = False  # as if the answer had not come
    wait_until(lambda: server.controlled_by is None, what="the release")


def test_a_request_for_control_that_times_out(serve, connect):
    gate, entered = threading.Event(), threading.Event()

    def act(key, payload):
        entered.set()
        assert gate.wait(20)
        return {}

    server, client, busy = serve(act=act), connect(timeout_ms=50), connect(timeout_ms=20_000)
    acting = InThread(lambda: busy.act("move"))
    assert entered.wait(10)
    with pytest.raises(RequestTimeout):
        client.take_control()
    assert not client.has_control
    gate.set()
    acting.result()
    assert server.controlled_by is None
    client.take_control()
    assert client.has_control


# -- other versions, other peers -------------------------------------------------------------------


class OldServer(ActionServer):
    """Answers as the earlier version does."""

    def _handle(self, what, name, payload):
        if what in ("act", "obs"):
            return super()._handle(what, name, payload)
        return {"success": False, "message": f"this server has no {what}_callback"}


def test_a_server_of_an_earlier_version_gives_no_control(running, connect, any_broker_url):
    server = running(OldServer(CONFIG, None, lambda k, p: {"did": p}, broker=any_broker_url))
    server.start(threaded=True)
    with pytest.raises(AgentlaceError, match="earlier version"):
        connect(exclusive=True)
    client = connect()
    with pytest.raises(AgentlaceError, match="earlier version"):
        client.take_control()
    assert client.act("move", 1) == {"did": 1}


def test_a_damaged_claim_is_refused(serve, connect):
    server, client = serve(), connect()
    for payload in (None, [], {}, {"name": 1, "host": "h", "pid": 1}, {"name": "x" * 999}):
        with pytest.raises(AgentlaceError):
            client._requests.call("control", "take", payload, 5.0)
    with pytest.raises(AgentlaceError, match="unknown request"):
        client._requests.call("control", "grab", {}, 5.0)
    assert server.controlled_by is None
    assert client.act("move", 1) == {"did": 1}


@pytest.mark.parametrize(
    "told", [None, "x", {}, {"caller": "zz", "name": "n", "host": "", "pid": 1}]
)
@on_redis
def test_what_a_server_before_has_left_may_be_damaged(serve, told):
    server = serve(start=False)
    broker = server._connected()
    keys = ServiceKeys(server._url.namespace, "action", 5556)
    with contextlib.closing(broker.channel(key=keys.prefix)) as channel:
        channel.call("SET", keys.seen, json.dumps({"control": told}))
    server.start(threaded=True)
    assert server.controlled_by is None
