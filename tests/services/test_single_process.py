"""Learner and actor as two threads of one process: the calls of both ends over a shared store."""

import inspect
import threading

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer, TrainerSMInterface
from agentlace.data import ReplayBuffer

from .support import InThread, Log, assert_same, wait_until


def test_it_has_the_calls_of_both_ends():
    own = dict(inspect.getmembers(TrainerSMInterface))
    for end in (TrainerServer, TrainerClient):
        calls = {name for name, _ in inspect.getmembers(end) if not name.startswith("_")}
        calls -= {"exclusive", "is_running", "counters", "lost"}  # there is no server and no queue
        for name in sorted(calls):
            assert name in own, f"{end.__name__}.{name}"
            if callable(getattr(end, name)):
                theirs = inspect.signature(getattr(end, name)).parameters
                mine = inspect.signature(own[name]).parameters
                assert [*mine] == [*theirs][: len(mine)], name


def test_networks_reach_the_callback_as_snapshots():
    both = TrainerSMInterface()
    assert both.published_version == 0 and both.policy_version is None
    early = Log()
    both.recv_network_callback(early)
    weights = {"w": np.zeros(3), "layers": (1, 2)}
    assert both.publish_network(weights) == 1
    weights["w"] += 1
    assert_same(list(early), [{"w": np.zeros(3), "layers": (1, 2)}])
    assert both.policy_version == both.published_version == 1
    assert 0 <= both.policy_age_s < 20


def test_a_late_actor_gets_the_newest_at_once():
    both = TrainerSMInterface()
    both.publish_network(1)
    both.publish_network(2)
    assert both.policy_version is None and both.policy_age_s is None
    seen = Log()
    both.recv_network_callback(seen)
    assert seen == [2]
    both.publish_network(3)
    assert seen == [2, 3]


def test_many_publishers_deliver_in_order_and_nothing_twice():
    both, seen = TrainerSMInterface(), Log()
    n_threads, n_each = 8, 50
    running, overlaps = threading.Lock(), []

    def callback(tree):
        if not running.acquire(blocking=False):
            return overlaps.append(tree)
        seen((both.policy_version, tree))
        running.release()

    both.recv_network_callback(callback)

    def publish(k):
        return [both.publish_network((k, i)) for i in range(n_each)]

    threads = [InThread(lambda k=k: publish(k)) for k in range(n_threads)]
    published = {n: (k, i) for k, t in enumerate(threads) for i, n in enumerate(t.result())}
    assert sorted(published) == list(range(1, n_threads * n_each + 1))
    versions = [version for version, _ in seen]
    assert versions == sorted(set(versions))
    assert versions[-1] == n_threads * n_each
    assert all(published[version] == tree for version, tree in seen)
    assert not overlaps


def test_an_older_network_does_not_overtake():
    """One publisher is still in the callback while others publish."""
    both, seen = TrainerSMInterface(), Log()
    entered, leave = threading.Event(), threading.Event()

    def callback(n):
        seen(n)
        if n == 1:
            entered.set()
            assert leave.wait(20)

    both.recv_network_callback(callback)
    first = InThread(lambda: both.publish_network(1))
    assert entered.wait(20)
    others = [InThread(lambda n=n: both.publish_network(n)) for n in (2, 2, 2)]
    assert sorted(other.result() for other in others) == [2, 3, 4]
    assert seen == [1]
    leave.set()
    assert first.result() == 1
    assert seen == [1, 2]
    assert both.policy_version == 4


def test_a_callback_may_publish_and_register():
    both, seen, late = TrainerSMInterface(), Log(), Log()

    def callback(n):
        seen(n)
        if n < 3:
            both.publish_network(n + 1)
            assert InThread(lambda: both.publish_network(n + 1)).result()
        else:
            both.recv_network_callback(late)

    both.recv_network_callback(callback)
    both.publish_network(1)
    assert seen == [1, 2, 3]
    assert late == [3]
    both.publish_network(9)
    assert (seen, late) == ([1, 2, 3], [3, 9])


def test_a_callback_that_raises_is_called_again(caplog):
    both, seen = TrainerSMInterface(), Log()

    def callback(n):
        seen(n)
        raise RuntimeError("cannot use it")

    both.recv_network_callback(callback)
    assert [both.publish_network(n) for n in (1, 2)] == [1, 2]
    assert seen == [1, 2]
    assert "cannot use it" in caplog.text


def test_requests():
    both = TrainerSMInterface()
    assert both.request("send-stats", {}) is None
    both.register_request_callback(lambda kind, payload: {kind: payload})
    assert both.request("send-stats", {"r": 1}) == {"send-stats": {"r": 1}}


def test_the_store_is_shared():
    both = TrainerSMInterface()
    store = ReplayBuffer(10)
    both.register_data_store("actor_env", store)
    assert both.store_names() == {"actor_env"}
    assert both.data_store("actor_env") is store
    assert both.data_store("other") is None
    store.insert({"a": 1})
    assert both.update() is True
    assert both.update_datastore("actor_env", -1, confirm_update=True) is True
    assert both.update_datastore("other", -1) is False
    assert both.get_server_last_update_id("actor_env") == store.latest_data_id()
    assert both.get_server_last_update_id("other") is None
    both.start(threaded=True)
    both.start_async_update(interval=1)
    both.stop()


@pytest.mark.parametrize("ends", ["single process", "over a broker"])
def test_one_program_runs_over_both(ends, running, broker_url):
    """Written once, run in two threads over a shared buffer and over a broker."""
    total, learned = 300, threading.Event()

    def actor(client, store):
        versions = Log()
        client.recv_network_callback(lambda params: versions(params["n"]))
        for i in range(total):
            store.insert({"observations": np.full(4, i, np.float32), "rewards": float(i)})
            if i % 10 == 0:
                assert client.update()
                client.request("send-stats", {"step": i})
        assert client.update()
        wait_until(learned.is_set)
        wait_until(lambda: versions and versions[-1] == 20)
        assert versions == sorted(set(versions))
        client.stop()

    def learner(server, store):
        wait_until(lambda: len(store) >= 100)
        for n in range(1, 21):
            batch = store.sample(32)
            assert np.array_equal(batch["observations"][:, 0], batch["rewards"])
            server.publish_network({"n": n})
        learned.set()
        wait_until(lambda: store.latest_data_id() == total - 1)

    stats = Log()

    def answer(kind, payload):
        stats((kind, payload["step"]))
        return {}

    buffer = ReplayBuffer(1000)
    if ends == "single process":
        both = TrainerSMInterface()
        both.register_request_callback(answer)
        both.register_data_store("actor_env", buffer)
        threads = [InThread(lambda: learner(both, buffer)), InThread(lambda: actor(both, buffer))]
    else:
        config = TrainerConfig(request_types=["send-stats"])
        server = running(TrainerServer(config, request_callback=answer, broker=broker_url))
        server.register_data_store("actor_env", buffer)
        server.start(threaded=True)
        store = ReplayBuffer(1000)
        client = TrainerClient("actor_env", "localhost", config, store, broker=broker_url)
        threads = [
            InThread(lambda: learner(server, buffer)),
            InThread(lambda: actor(client, store)),
        ]
    for thread in threads:
        thread.result()
    assert stats == [("send-stats", i) for i in range(0, total, 10)]


def test_it_is_saved_and_restored(tmp_path):
    def make():
        both = TrainerSMInterface()
        both.register_data_store("env", ReplayBuffer(100))
        return both

    both = make()
    for n in range(5):
        both.data_store("env").insert({"n": n})
    both.publish_network({"w": 1})
    both.publish_network({"w": 2})
    assert both.save(tmp_path, extra={"steps": 5})
    again = make()
    assert again.restore(tmp_path) == {"steps": 5}
    assert [int(row["n"]) for row in again.data_store("env").get_latest_data(-1)] == [*range(5)]
    assert again.published_version == 2 and again.publish_network({"w": 3}) == 3
