"""The action service, as the contract states it, over every kind of broker."""

import copy
import gc
import logging
import threading

import numpy as np
import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    AgentlaceError,
    AlreadyServed,
    Closed,
    EncodeError,
    RemoteError,
    RequestTimeout,
    UnknownRequest,
)

from .support import InThread, Log, assert_same, holds_for, wait_until

pytestmark = pytest.mark.filterwarnings("error")

CONFIG = ActionConfig(5556, ["move", "grip"], ["image", "pose"], broadcast_port=5557)
CAMERA = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
POSE = np.linspace(0.0, 1.0, 6)


def look(keys):
    return {key: {"image": CAMERA, "pose": POSE}[key] for key in keys}


@pytest.fixture
def serve(running, any_broker_url):
    def serve(obs=look, act=lambda key, payload: {"key": key, "payload": payload}, config=CONFIG):
        server = running(ActionServer(config, obs, act, broker=any_broker_url))
        server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(config=CONFIG, **kwargs):
        return running(ActionClient("localhost", config, broker=any_broker_url, **kwargs))

    return connect


class Gate:
    """A handler that waits until it is let through."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.executed = Log()

    def __call__(self, key, payload):
        self.entered.set()
        assert self.opened.wait(20)
        self.executed(payload)
        return {"done": payload}


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


# -- observations ----------------------------------------------------------------------------------


def test_obs_asks_for_all_keys_and_returns_what_the_callback_returned(serve, connect):
    asked = Log()
    serve(obs=lambda keys: asked(keys) or look(keys))
    client = connect()
    assert_same(client.obs(), {"image": CAMERA, "pose": POSE})
    assert_same(client.obs({"pose"}), {"pose": POSE})
    assert_same(client.obs(["pose", "image"]), {"image": CAMERA, "pose": POSE})
    assert asked == [{"image", "pose"}, {"pose"}, {"image", "pose"}]
    assert all(type(keys) is set for keys in asked)


def test_an_observation_belongs_to_its_receiver(serve, connect):
    serve()
    client = connect()
    first = client.obs()
    first["image"][:] = 0
    assert_same(client.obs()["image"], CAMERA)


def test_an_unknown_observation_key_is_an_error_that_names_it(serve, connect):
    asked = Log()
    serve(obs=asked)
    with pytest.raises(UnknownRequest, match=r"'depth'.*'image'.*'pose'"):
        connect().obs({"pose", "depth"})
    assert not asked


# -- actions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        {"pose": POSE, "speed": np.float32(0.5), "names": ["a", "b"]},
        CAMERA,
        (1, 2.5, "three", None, True),
        [b"jpeg", {4, 5}],
        3,
        "home",
        np.int64(7),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_act_takes_any_tree_and_returns_any_tree(serve, connect, payload):
    serve()
    assert_same(connect().act("move", payload), {"key": "move", "payload": payload})


def test_act_without_a_payload_sends_an_empty_dict(serve, connect):
    serve()
    client = connect()
    assert client.act("grip") == {"key": "grip", "payload": {}}
    assert client.act("grip", {}) == {"key": "grip", "payload": {}}


def test_an_unknown_action_key_raises_and_is_not_executed(serve, connect):
    executed = Log()
    serve(act=executed)
    with pytest.raises(UnknownRequest, match=r"'send'.*'grip'.*'move'"):
        connect().act("send", {})
    assert not executed


def test_the_server_refuses_a_key_that_a_client_should_not_have_sent(serve, connect):
    done = Log()
    serve(obs=done, act=done)
    client = connect()
    client.config.action_keys.append("explode")
    client.config.observation_keys.append("soul")
    with pytest.raises(UnknownRequest, match="explode"):
        client.act("explode")
    with pytest.raises(UnknownRequest, match="soul"):
        client.obs()
    assert not done


def test_a_missing_callback_answers_that_it_is_missing(serve, connect):
    serve(obs=None, act=None)
    client = connect()
    for answer in (client.obs(), client.act("move")):
        assert answer["success"] is False and "callback" in answer["message"]
    assert client.last_error is None


def test_a_payload_that_may_not_travel_raises_and_names_the_place(serve, connect):
    executed = Log()
    serve(act=executed)
    with pytest.raises(EncodeError) as caught:
        connect().act("move", {"arm": [0, object()]})
    assert caught.value.path == "arm/1"
    assert not executed


def test_a_failing_handler_is_answered_and_does_not_end_the_server(serve, connect, caplog):
    def act(key, payload):
        return {"ok": 1 / payload}

    serve(act=act)
    client = connect()
    assert client.act("move", 0) is None
    error = client.last_error
    assert isinstance(error, RemoteError)
    assert (error.type, error.message) == ("ZeroDivisionError", "division by zero")
    assert "Traceback" in caplog.text  # where the server runs
    assert client.act("move", 2) == {"ok": 0.5}
    assert client.last_error is None


def test_an_answer_that_may_not_travel_is_told_to_the_caller(serve, connect):
    serve(act=lambda key, payload: {"lock": threading.Lock()})
    client = connect()
    assert client.act("move") is None
    assert isinstance(client.last_error, RemoteError) and "lock" in str(client.last_error)


def test_strict_raises_instead(serve, connect):
    serve(act=lambda key, payload: 1 / 0)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        connect(strict=True).act("move")


# -- deadlines -------------------------------------------------------------------------------------


def test_a_slow_action_gives_none_is_executed_once_and_its_reply_goes_nowhere_else(
    serve, connect, gate
):
    serve(act=gate)
    client = connect(timeout_ms=100)
    assert client.act("move", 1) is None
    assert isinstance(client.last_error, RequestTimeout) and client.last_error.started is True
    gate.opened.set()
    client.timeout_ms = 5000
    assert client.act("move", 2) == {"done": 2}
    assert gate.executed == [1, 2]


def test_an_action_that_nobody_took_in_time_is_never_executed(serve, connect, gate):
    serve(act=gate)
    patient, hasty = connect(timeout_ms=10_000), connect(timeout_ms=100)
    first = InThread(lambda: patient.act("move", "first"))
    assert gate.entered.wait(10)
    assert hasty.act("move", "late") is None
    assert isinstance(hasty.last_error, RequestTimeout) and hasty.last_error.started is False
    gate.opened.set()
    assert first.result() == {"done": "first"}
    assert patient.act("move", "second") == {"done": "second"}
    assert gate.executed == ["first", "second"]


def test_a_repeated_action_is_answered_and_not_executed_again(serve, connect, gate):
    serve(act=gate)
    client = connect(timeout_ms=100)
    ticket = client.new_ticket()
    assert client.act("move", 1, ticket=ticket) is None
    gate.opened.set()
    client.timeout_ms = 5000
    assert client.act("move", 1, ticket=ticket) == {"done": 1}
    assert client.act("move", 1, ticket=ticket) == {"done": 1}
    assert gate.executed == [1]


def test_every_thread_gets_its_own_reply(serve, connect):
    serve()
    client = connect(timeout_ms=10_000)

    def calls(thread):
        return [client.act("move", (thread, i))["payload"] for i in range(30)]

    threads = [InThread(lambda thread=thread: calls(thread)) for thread in range(4)]
    for thread, waiting in enumerate(threads):
        assert waiting.result() == [(thread, i) for i in range(30)]


def test_stop_ends_a_waiting_call(serve, connect, gate):
    serve(act=gate)
    client = connect(timeout_ms=15_000)
    waiting = InThread(lambda: client.act("move"))
    assert gate.entered.wait(10)
    client.stop()
    assert waiting.result(timeout_s=5) is None
    assert isinstance(client.last_error, (Closed, RequestTimeout))
    assert client.obs() is None
    assert isinstance(client.last_error, Closed)


# -- broadcast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{"pose": POSE}, {"image": CAMERA}], ids=["small", "large"])
def test_published_observations_reach_every_watcher(serve, connect, payload):
    server = serve()
    seen = [Log(), Log()]
    for log in seen:
        connect().register_obs_callback(log)
    assert server.publish_obs(payload) is True
    for log in seen:
        log.wait()
        assert_same(list(log), [payload])


def test_a_slow_watcher_gets_the_newest_and_knows_what_it_missed(serve, connect):
    server = serve()
    client = connect()
    seen, busy = Log(), threading.Event()

    def watch(obs):
        seen(obs)
        assert busy.wait(20)

    client.register_obs_callback(watch)
    server.publish_obs(0)
    seen.wait()
    for number in range(1, 6):
        server.publish_obs(number)
    busy.set()
    wait_until(lambda: seen[-1] == 5)
    assert seen == sorted(seen)
    assert client.missed_obs == 6 - len(seen)


def test_a_watcher_that_raises_gets_the_next_observation(serve, connect):
    server = serve()
    seen = Log()

    def watch(obs):
        seen(obs)
        raise RuntimeError("not today")

    connect().register_obs_callback(watch)
    server.publish_obs(1)
    seen.wait(1)
    server.publish_obs(2)
    assert seen.wait(2) == [1, 2]


def test_the_newest_observation_can_be_read_later(serve, connect):
    server = serve()
    assert connect().latest_obs() is None
    server.publish_obs({"n": 1})
    server.publish_obs({"n": 2})
    assert connect().latest_obs() == {"n": 2}


def test_without_a_broadcast_port_publishing_is_refused_with_a_warning(serve, connect, caplog):
    config = ActionConfig(5556, [], ["pose"])
    server = serve(config=config)
    assert server.publish_obs({}) is False
    assert [r.levelno for r in caplog.records if "broadcast_port" in r.message] == [logging.WARNING]
    with pytest.raises(AgentlaceError, match="broadcast_port"):
        connect(config=config).register_obs_callback(print)


def test_an_observation_that_may_not_travel_raises_at_the_publisher(serve):
    with pytest.raises(EncodeError, match="camera"):
        serve().publish_obs({"camera": object()})


def test_a_server_that_only_published_leaves_nothing_behind(any_broker_url):
    """A connection that nobody closed is a ResourceWarning, which is an error here."""
    server = ActionServer(CONFIG, look, None, broker=any_broker_url)
    assert server.publish_obs(POSE) is True
    server.stop()
    del server
    gc.collect()


def test_a_camera_thread_may_publish_while_the_server_stops(any_broker_url):
    with ActionServer(CONFIG, look, None, broker=any_broker_url) as server:
        for _ in range(5):
            server.start(threaded=True)
            done = threading.Event()
            camera = InThread(lambda done=done: _publish_until(server, done))
            wait_until(lambda: server._broadcast is not None)
            server.stop()
            done.set()
            camera.result()


def _publish_until(server, done):
    while not done.is_set():
        server.publish_obs(POSE)


# -- configs ---------------------------------------------------------------------------------------


def test_a_config_is_copied_and_its_keys_are_a_set(serve, connect):
    mine = ActionConfig(5556, ["grip", "move", "move"], ("pose", "image"), broadcast_port=5557)
    before = copy.deepcopy(mine)
    serve()
    client = connect(mine)
    mine.action_keys.clear()
    assert client.act("move", 1)["payload"] == 1
    mine.action_keys = before.action_keys
    client.obs()
    client.act("grip")
    assert mine == before and type(mine.action_keys) is list


def test_the_readme_form_takes_the_number_and_the_config(serve, running, any_broker_url):
    serve()
    args = dict(task_id="mnist", config=CONFIG, broker=any_broker_url)
    client = running(ActionClient("localhost", 5556, **args))
    assert client.act("move", 1) == {"key": "move", "payload": 1}
    assert client.task_id == "mnist"
    with pytest.raises(AgentlaceError, match=r"6379.*5556"):
        ActionClient("localhost", 6379, **args)
    with pytest.raises(TypeError, match="ActionConfig"):
        ActionClient("localhost", 5556, broker=any_broker_url)


# -- life ------------------------------------------------------------------------------------------


def test_a_server_may_be_started_again_and_its_clients_go_on(serve, connect):
    server = serve()
    client = connect(timeout_ms=5000)
    seen = Log()
    client.register_obs_callback(seen)
    assert client.act("move", 1)["payload"] == 1
    server.stop()
    server.stop()
    assert not server.is_running
    server.start(threaded=True)
    assert client.act("move", 2)["payload"] == 2
    server.publish_obs("again")
    assert seen.wait() == ["again"]


def test_start_blocks_until_stop(running, any_broker_url, connect):
    server = running(ActionServer(CONFIG, look, None, broker=any_broker_url))
    serving = InThread(server.start)
    assert_same(connect(wait_for_server=True).obs({"pose"}), {"pose": POSE})
    assert serving.is_running
    server.stop()
    serving.result(timeout_s=5)


def test_a_handler_may_stop_its_server(running, any_broker_url, connect):
    server = running(ActionServer(CONFIG, look, lambda *_: server.stop(), broker=any_broker_url))
    serving = InThread(server.start)
    connect(wait_for_server=True, timeout_ms=3000).act("move")
    serving.result(timeout_s=5)


def test_a_second_server_of_the_same_identity_is_refused(serve, connect, any_broker_url):
    serve()
    with (
        ActionServer(CONFIG, look, None, broker=any_broker_url) as second,
        pytest.raises(AlreadyServed, match=r"action:5556.*port_number"),
    ):
        second.start(threaded=True)
    del second
    gc.collect()
    other = ActionConfig(5560, ["move"], [])
    serve(config=other, act=lambda key, payload: "other")
    assert connect().act("move", 1)["payload"] == 1
    assert connect(other).act("move", 1) == "other"


def test_a_running_server_cannot_be_started_twice(serve):
    server = serve()
    with pytest.raises(AgentlaceError, match="running already"):
        server.start(threaded=True)
    assert server.is_running


def test_clients_poll_at_camera_rate_while_another_acts(serve, connect):
    """Manipulator Gym's shape: observations are asked for all the time, actions take a while."""
    jpeg = CAMERA[::4].tobytes()
    pause = threading.Event()

    def act(key, payload):
        pause.wait(0.02)
        return {"status": True}

    serve(obs=lambda keys: {"image": jpeg}, act=act)
    poller, mover = connect(timeout_ms=5000), connect(timeout_ms=5000)
    polls = InThread(lambda: [poller.obs({"image"}) for _ in range(40)])
    assert all(mover.act("move", POSE) == {"status": True} for _ in range(10))
    assert all(obs == {"image": jpeg} for obs in polls.result())
    holds_for(lambda: poller.last_error is None and mover.last_error is None, 0.01)
