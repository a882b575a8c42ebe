"""Observations at a fixed rate, and the newest without a round trip, with its age."""

import logging
import threading
import time

import numpy as np
import pytest

from agentlace import codec
from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, Closed, UnknownRequest
from agentlace.transport.connection import Broker
from agentlace.transport.keys import NEWEST_MS, ServiceKeys

from .support import InThread, Log, LossyProxy, assert_same, holds_for, stay_on_tcp, wait_until

CONFIG = ActionConfig(5556, ["move"], ["image", "pose"], broadcast_port=5557)
IMAGE = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)  # beside the message
POSE = np.linspace(0.0, 1.0, 6)


on_redis = pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)


def look(keys):
    return {key: {"image": IMAGE, "pose": POSE}[key] for key in keys}


def told(node):
    """Return the numbers that a node tells of itself."""
    return {sample.name: sample.value for sample in node.telemetry.samples()}


@pytest.fixture
def serve(running, any_broker_url):
    def serve(obs=look, act=lambda key, payload: payload, config=CONFIG, start=True):
        server = running(ActionServer(config, obs, act, broker=any_broker_url))
        if start:
            server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(config=CONFIG, at=any_broker_url, **kwargs):
        return running(ActionClient("localhost", config, broker=at, timeout_ms=5000, **kwargs))

    return connect


# -- the newest ------------------------------------------------------------------------------------


def test_the_newest_comes_with_its_age_and_number(serve, connect):
    server, client = serve(), connect()
    assert client.latest() is None
    for number, payload in enumerate(({"pose": POSE}, {"image": IMAGE}), 1):
        before_s = time.monotonic()
        server.publish_obs(payload)
        wait_until(lambda n=number: (found := client.latest()) and found.sequence == n)
        latest = client.latest()
        assert_same(latest.obs, payload)
        assert latest.missed == 0
        assert before_s - latest.error_s <= latest.captured_s <= time.monotonic()
        assert 0 <= latest.error_s < 1
        age_s = latest.age_s
        assert 0 <= age_s <= time.monotonic() - before_s + latest.error_s
        wait_until(lambda a=age_s, found=latest: found.age_s > a)


def test_the_time_of_capture_is_in_the_brokers_time(serve, connect, any_broker_url):
    server, client = serve(), connect()
    broker = Broker(BrokerURL.parse(any_broker_url), ServiceKeys("x", "action", 1).prefix)
    captured_s = time.monotonic() - 3.0
    server.publish_obs(POSE, captured_s=captured_s)
    latest = wait_until(client.latest)
    assert latest.age_s >= 3.0 - latest.error_s
    assert latest.age_s <= time.monotonic() - captured_s + latest.error_s
    error_ms = latest.error_s * 1000 + broker.clock_error_ms + 5
    assert abs(latest.captured_ms - broker.at_ms(captured_s)) <= error_ms


@on_redis
def test_it_costs_no_round_trip(serve, connect, broker_url, monkeypatch):
    stay_on_tcp(monkeypatch)
    server = serve()
    port = str(BrokerURL.parse(broker_url).port)
    with LossyProxy(int(port)) as proxy:
        client = connect(at=broker_url.replace(port, str(proxy.port)))
        client.watch_latest()
        server.publish_obs({"pose": POSE})
        wait_until(client.latest)
        proxy.deaf.set()  # from here on no answer would come
        for _ in range(100):
            assert_same(client.latest().obs, {"pose": POSE})
            assert client.latest_obs() is client.latest().obs
        client.stop()


def test_one_that_was_published_before_is_there_at_once(serve, connect):
    server = serve()
    server.publish_obs({"pose": POSE})
    latest = connect().latest()
    assert_same(latest.obs, {"pose": POSE})
    assert (latest.sequence, latest.missed) == (1, 0)


def test_what_did_not_arrive_is_counted(serve, connect):
    server, client = serve(), connect()
    client.watch_latest()
    for number in range(200):
        server.publish_obs(number)
    wait_until(lambda: (found := client.latest()) and found.obs == 199)
    latest = client.latest()
    assert latest.sequence == 200
    assert latest.missed == 200 - client._newest.delivered
    assert told(server)["observations_published_total"] == 200
    assert told(client)["observations_missed_total"] == latest.missed


def test_latest_obs_asks_the_broker_unless_it_watches(serve, connect):
    server, client = serve(), connect()
    server.publish_obs({"n": 1})
    first, second = client.latest_obs(), client.latest_obs()
    assert first == second == {"n": 1} and first is not second
    assert client._newest is None
    client.watch_latest()
    client.watch_latest()
    server.publish_obs({"n": 2})
    wait_until(lambda: client.latest_obs() == {"n": 2})
    assert client.latest_obs() is client.latest_obs()


def test_an_old_one_is_told_by_its_age(serve, connect):
    server, client = serve(), connect()
    client.watch_latest()
    server.publish_obs("old", captured_s=time.monotonic() - NEWEST_MS / 1000)
    latest = wait_until(client.latest)
    assert latest.obs == "old" and latest.age_s >= NEWEST_MS / 1000 - latest.error_s
    wait_until(lambda: client.latest_obs() is None)
    assert client.last_error is None


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_server_of_an_earlier_version_says_no_times(serve, connect, any_broker_url, size):
    serve()
    client = connect()
    client.watch_latest()
    keys = ServiceKeys(client._url.namespace, "action", 5556)
    channel = client._broker.channel(key=keys.prefix)
    before_s = time.monotonic()
    frame = codec.encode({"n": np.zeros(size)}, "obs", {"source": "old", "number": 7})
    channel.call("SET", keys.newest_obs, frame, "PX", NEWEST_MS)
    channel.call(channel.pubsub().publish, keys.obs_channel, frame if size == 1 else b"")
    channel.close()
    latest = wait_until(client.latest)
    assert (latest.sequence, latest.captured_ms, latest.error_s) == (7, None, 0.0)
    assert before_s <= latest.captured_s <= time.monotonic()


@pytest.mark.parametrize("value", ["x", -1, float("nan"), None, [], 10**400])
def test_times_that_cannot_be_are_taken_for_none(serve, connect, value):
    serve()
    client = connect()
    client.watch_latest()
    keys = ServiceKeys(client._url.namespace, "action", 5556)
    channel = client._broker.channel(key=keys.prefix)
    times = {"captured_ms": value if value != 10**400 else 1e300, "error_ms": value}
    if value == 10**400:
        times = {"captured_ms": float("inf"), "error_ms": -5}
    frame = codec.encode("odd", "obs", {"source": "odd", "number": 1, **times})
    channel.call(channel.pubsub().publish, keys.obs_channel, frame)
    channel.close()
    assert wait_until(client.latest).captured_ms is None


def test_a_restarted_server_counts_anew(serve, connect):
    server, client = serve(), connect()
    client.watch_latest()
    for number in (1, 2, 3):
        server.publish_obs(number)
    wait_until(lambda: (found := client.latest()) and found.sequence == 3)
    server.stop()
    server.start(threaded=True)
    server.publish_obs("new")
    wait_until(lambda: client.latest().obs == "new")
    assert client.latest().sequence == 1


@on_redis
def test_what_was_published_while_the_watcher_was_away_is_read(
    serve, connect, broker_url, monkeypatch
):
    stay_on_tcp(monkeypatch)
    server = serve()
    port = str(BrokerURL.parse(broker_url).port)
    with LossyProxy(int(port)) as proxy:
        client = connect(at=broker_url.replace(port, str(proxy.port)))
        client.watch_latest()
        server.publish_obs(1)
        wait_until(lambda: (found := client.latest()) and found.obs == 1)
        proxy.deaf.set()
        server.publish_obs(2)
        proxy.cut()
        proxy.deaf.clear()
        wait_until(lambda: client.latest().obs == 2)  # though nothing is published any more
        assert client.latest().missed == 0
        client.stop()


def test_after_stop_and_without_broadcasts(serve, connect):
    config = ActionConfig(5560, [], ["pose"])
    serve(config=config)
    for call in ("latest", "watch_latest"):
        with pytest.raises(AgentlaceError, match="broadcast_port"):
            getattr(connect(config), call)()
    serve()
    client = connect()
    client.latest()
    client.stop()
    with pytest.raises(Closed):
        client.latest()
    assert client.latest_obs() is None and isinstance(client.last_error, Closed)


def test_many_threads_may_ask(serve, connect):
    server, client = serve(), connect()
    done = threading.Event()

    def read():
        last = 0
        while not done.is_set():
            latest = client.latest()
            if latest is not None:
                assert latest.obs["n"] == latest.sequence >= last
                last = latest.sequence
        return last

    readers = [InThread(read) for _ in range(2)]
    for number in range(1, 61):
        server.publish_obs({"n": number})
    wait_until(lambda: (found := client.latest()) and found.sequence == 60)
    done.set()
    assert all(reader.result() <= 60 for reader in readers)


# -- at a fixed rate -------------------------------------------------------------------------------


@on_redis
def test_observations_come_at_a_rate(serve, connect):
    asked, seen = Log(), Log()
    server, client = serve(obs=lambda keys: asked(keys) or look(keys)), connect()
    client.register_obs_callback(lambda obs: seen((time.monotonic(), obs)))
    rate = server.publish_at(50.0, keys=["pose"])
    seen.wait(25)
    start_s, first_tick = time.monotonic(), rate.published + rate.skipped
    seen.wait(len(seen) + 25)
    elapsed_s = time.monotonic() - start_s
    # Ticks lie on a grid: however late some were, as many have passed as the time says.
    ticks = rate.published + rate.skipped - first_tick
    assert abs(ticks - elapsed_s * 50.0) <= 3
    assert all(keys == {"pose"} for keys in asked)
    assert_same(seen[0][1], {"pose": POSE})
    assert rate.failed == 0 and rate.published >= 50


@on_redis
def test_late_ticks_are_skipped_and_counted(serve):
    gate, entered = threading.Event(), threading.Event()

    def slow(keys):
        entered.set()
        assert gate.wait(20)
        return {"pose": POSE}

    server = serve()
    rate = server.publish_at(100.0, callback=slow)
    assert entered.wait(10)
    start_s = time.monotonic()
    wait_until(lambda: time.monotonic() - start_s > 0.1)  # ten ticks pass meanwhile
    assert (rate.published, rate.skipped) == (0, 0)
    gate.set()
    wait_until(lambda: rate.published >= 2)
    assert rate.skipped >= 9
    assert told(server)["observations_skipped_total"] >= 9


@on_redis
def test_handlers_never_run_at_the_same_time(serve, connect):
    inside, most, ran = [0], Log(), Log()
    lock = threading.Lock()

    def handler(name):
        with lock:
            inside[0] += 1
            most(inside[0])
        threading.Event().wait(0.002)
        ran(name)
        with lock:
            inside[0] -= 1
        return {"pose": POSE}

    server = serve(obs=lambda keys: handler("obs"), act=lambda k, p: handler("act"))
    client, other = connect(), connect()
    server.publish_at(1000.0)
    acting = InThread(lambda: [client.act("move", n) for n in range(50)])
    looking = InThread(lambda: [other.obs() for n in range(50)])
    assert all(answer is not None for answer in acting.result() + looking.result())
    wait_until(lambda: ran.count("obs") > 60)
    assert max(most) == 1


def test_a_callback_of_its_own_runs_beside_a_slow_action(serve, connect):
    gate, entered, captured = threading.Event(), threading.Event(), Log()

    def act(key, payload):
        entered.set()
        assert gate.wait(20)

    server, client = serve(act=act), connect()
    acting = InThread(lambda: client.act("move"))
    assert entered.wait(10)
    shared = server.publish_at(200.0)
    holds_for(lambda: shared.published == 0, 0.1)  # it waits for the handler
    server.publish_at(200.0, callback=lambda keys: captured(1) or {"pose": POSE})
    captured.wait(5)
    gate.set()
    acting.result()


@on_redis
def test_a_buffer_may_be_filled_anew_for_each_observation(serve, connect):
    """Frames are sent after the callback has returned, while another thread calls it again."""
    buffer, number = np.zeros(200_000, np.int64), [0]

    def capture(keys):
        number[0] += 1
        buffer[:] = number[0]
        return {"image": buffer}

    server, client = serve(obs=capture), connect()
    seen = Log()
    client.register_obs_callback(seen)
    server.publish_at(1000.0)
    for _ in range(50):
        image = client.obs()["image"]
        assert image[0] == image[-1] and (image == image[0]).all()
    seen.wait(5)
    assert all((obs["image"] == obs["image"][0]).all() for obs in seen)


@on_redis
def test_a_capture_that_raises_is_logged_and_the_next_one_tried(serve, caplog):
    caplog.set_level(logging.WARNING)
    calls = Log()

    def capture(keys):
        calls(1)
        if len(calls) < 4:
            raise OSError("the camera is not there")
        return {"pose": object()} if len(calls) == 4 else {"pose": POSE}

    rate = serve().publish_at(200.0, callback=capture)
    wait_until(lambda: rate.published >= 2)
    assert rate.failed == 4
    assert caplog.text.count("the camera is not there\n") == 1  # not with every tick
    assert "pose" in caplog.text


@on_redis
def test_it_runs_whenever_the_server_runs(serve, connect):
    server = serve(start=False)
    rate = server.publish_at(100.0)
    assert rate.published == 0
    for _ in range(2):
        server.start(threaded=True)
        before = rate.published
        wait_until(lambda b=before: rate.published > b + 2)
        server.stop()
        after = rate.published
        holds_for(lambda n=after: rate.published == n, 0.05)
    server.start(threaded=True)
    other = server.publish_at(200.0)
    wait_until(lambda: other.published)
    stopped_at = rate.published
    server.stop_publishing()
    server.stop_publishing()
    ended_at = other.published
    holds_for(lambda: (rate.published, other.published) == (stopped_at, ended_at), 0.05)


def test_a_handler_may_stop_a_server_that_publishes(serve, connect):
    server = serve(act=lambda key, payload: server.stop())
    server.publish_at(500.0)
    start_s = time.monotonic()
    connect().act("move")
    wait_until(lambda: not server.is_running)
    assert time.monotonic() - start_s < 4  # no thread waited for the other in vain


@on_redis
def test_what_cannot_be_published_at_a_rate(serve):
    server = serve()
    with pytest.raises(ValueError, match="rate_hz"):
        server.publish_at(0)
    with pytest.raises(UnknownRequest, match="depth"):
        server.publish_at(10, keys=["depth"])
    with pytest.raises(AgentlaceError, match="obs_callback"):
        serve(obs=None, config=ActionConfig(1, [], [], 2)).publish_at(10)
    with pytest.raises(AgentlaceError, match="broadcast_port"):
        serve(config=ActionConfig(3, [], [])).publish_at(10)
