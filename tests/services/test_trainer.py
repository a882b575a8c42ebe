"""The trainer service, as the contract states it, over every kind of broker."""

import copy
import itertools
import threading
import time

import numpy as np
import pytest

from agentlace import (
    ActorReplaced,
    AgentlaceError,
    Closed,
    EncodeError,
    RateLimited,
    RemoteError,
    RequestTimeout,
    Retention,
    StoreFull,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    UnknownRequest,
)
from agentlace.data import DataStoreBase, QueuedDataStore, ReplayBuffer

from .support import InThread, Log, assert_same, holds_for, wait_until

CONFIG = TrainerConfig(5588, 5589, request_types=["get-stats", "send-stats"])


def step(i):
    return {
        "observations": {"state": np.full((1, 19), i, np.float32), "n": np.int64(i)},
        "actions": np.full(7, -i, np.float64),
        "rewards": float(i),
        "dones": i % 2 == 0,
    }


class OwnStore(DataStoreBase):
    """A trainer's store as users write it, for scalars only."""

    def __init__(self, capacity):
        super().__init__(capacity)
        self.rows = []

    def insert(self, data):
        if np.shape(data["a"]):
            raise ValueError(f"shape {np.shape(data['a'])} where a scalar belongs")
        self.rows.append(data)

    def __len__(self):
        return len(self.rows)


@pytest.fixture
def serve(running, any_broker_url):
    def serve(*stores, config=CONFIG, start=True, **kwargs):
        server = running(TrainerServer(config, broker=any_broker_url, **kwargs))
        for name in stores:
            server.register_data_store(name, QueuedDataStore(10_000))
        if start:
            server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(store=None, config=CONFIG, name="robot", **kwargs):
        kwargs = {"timeout_ms": 5000, "broker": any_broker_url, **kwargs}
        return running(TrainerClient(name, "localhost", config, store, **kwargs))

    return connect


def contents(server, name="robot"):
    return list(server.data_store(name)._data_queue)


def wait_for_rows(server, n, name="robot"):
    wait_until(lambda: len(server.data_store(name)) >= n, what=f"{n} rows in {name!r}")
    return contents(server, name)


# -- transitions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [1, 2, 3],
        [np.arange(3), np.arange(3) + 3],
        [step(i) for i in range(5)],
        [(np.ones(4), 1.0, False, False, {}), (np.zeros(4), 0.5, True, False, {"episode": 1})],
        [{"text": "pick"}, {"text": "place", "more": [1, 2]}],
        [None, "x", b"y", 2.5],
        [np.float32(1.5), np.float32(2.5)],
    ],
    ids=["ints", "arrays", "dicts", "steps", "ragged", "mixed", "scalars"],
)
def test_any_transition_arrives_as_it_was_inserted(serve, connect, rows):
    server = serve("robot")
    store = QueuedDataStore(100)
    client = connect(store)
    store.batch_insert(rows)
    assert client.update() is True
    assert_same(wait_for_rows(server, len(rows)), rows)


def test_what_was_there_before_the_client_is_sent_at_once(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(100)
    store.batch_insert([1, 2])
    connect(store)
    assert wait_for_rows(server, 2) == [1, 2]


@pytest.mark.parametrize("kind", [dict, list])
def test_several_stores_go_by_their_own_names(serve, connect, kind):
    server = serve("actor_env", "actor_env_intvn")
    stores = {"actor_env": QueuedDataStore(100), "actor_env_intvn": QueuedDataStore(100)}
    client = connect(data_stores=kind(stores if kind is dict else stores.items()))
    stores["actor_env"].batch_insert([1, 2, 3])
    stores["actor_env_intvn"].insert("by hand")
    assert client.update() is True
    assert wait_for_rows(server, 3, "actor_env") == [1, 2, 3]
    assert wait_for_rows(server, 1, "actor_env_intvn") == ["by hand"]
    assert server.store_names() == {"actor_env", "actor_env_intvn"}
    assert server.data_store("nothing") is None


def test_updates_send_only_what_is_new_and_in_order(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(7)
    client = connect(store)
    for start in range(0, 60, 6):
        store.batch_insert(list(range(start, start + 6)))
        assert client.update()
        assert client.update()
    assert wait_for_rows(server, 60) == list(range(60))
    assert client.lost == 0


def test_an_update_without_a_store_is_false_and_says_why(serve, connect):
    serve("robot")
    client = connect()
    assert client.last_error is None
    assert client.update() is False
    assert isinstance(client.last_error, UnknownRequest)


def test_two_clients_feed_one_store_without_disturbing_each_other(serve, connect):
    server = serve("robot")
    stores = [QueuedDataStore(1000), QueuedDataStore(1000)]
    clients = [connect(store) for store in stores]
    for i, (store, client) in itertools.product(range(50), zip(stores, clients, strict=True)):
        store.insert((stores.index(store), i))
        assert client.update()
    rows = wait_for_rows(server, 100)
    for actor in range(2):
        assert [row for row in rows if row[0] == actor] == [(actor, i) for i in range(50)]
    wait_until(lambda: clients[0].get_server_last_update_id("robot") == 49)


def test_inserts_of_another_thread_are_never_lost_or_doubled(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(10_000)
    client = connect(store)
    inserting = InThread(lambda: [store.insert(i) for i in range(3000)])
    while inserting.is_running:
        assert client.update()
    inserting.result()
    assert client.update_datastore("robot", -1, confirm_update=True)
    assert contents(server) == list(range(3000))


def test_a_store_that_the_trainer_lacks_is_false_and_its_rows_go_later(serve, connect):
    server = serve("other")
    store = QueuedDataStore(100)
    store.batch_insert([1, 2])
    client = connect(store)
    assert client.update() is False
    assert isinstance(client.last_error, UnknownRequest)
    assert "'robot'" in str(client.last_error) and "'other'" in str(client.last_error)
    assert client.get_server_last_update_id("robot") is None
    server.register_data_store("robot", QueuedDataStore(100))
    store.insert(3)
    assert client.update() is True
    assert client.last_error is None
    assert wait_for_rows(server, 3) == [1, 2, 3]


def test_one_failing_store_makes_the_update_false_and_the_others_are_sent(serve, connect):
    server = serve("known")
    stores = {"unknown": QueuedDataStore(9), "known": QueuedDataStore(9)}
    client = connect(data_stores=stores)
    stores["unknown"].insert(1)
    stores["known"].insert(2)
    assert client.update() is False
    assert isinstance(client.last_error, UnknownRequest) and "'unknown'" in str(client.last_error)
    assert wait_for_rows(server, 1, "known") == [2]


def test_a_transition_that_may_not_travel_is_left_out_and_named(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(100)
    client = connect(store)
    bad = step(1)
    bad["observations"]["robot"] = object()
    store.batch_insert([step(0), bad, step(2)])
    with pytest.raises(EncodeError) as caught:
        client.update()
    assert caught.value.path == "observations/robot"
    assert_same(wait_for_rows(server, 2), [step(0), step(2)])
    store.insert(step(3))
    assert client.update()
    assert_same(wait_for_rows(server, 3)[2], step(3))


# -- confirmation and IDs --------------------------------------------------------------------------


class SlowStore(DataStoreBase):
    """Takes its time; only what a trainer's store must have."""

    def __init__(self):
        super().__init__(100)
        self.rows, self.opened = Log(), threading.Event()
        self.entered = threading.Event()

    def insert(self, data):
        self.entered.set()
        assert self.opened.wait(20)
        self.rows(data)

    def __len__(self):
        return len(self.rows)


def test_confirm_update_waits_for_the_trainers_store(serve, connect):
    slow = SlowStore()
    server = serve()
    server.register_data_store("robot", slow)
    store = QueuedDataStore(100)
    client = connect(store, timeout_ms=150)
    store.insert(1)
    assert client.update_datastore("robot", -1) is True
    assert client.update_datastore("robot", -1, confirm_update=True) is False
    assert isinstance(client.last_error, RequestTimeout) and "robot" in str(client.last_error)
    assert client.get_server_last_update_id("robot") == -1
    slow.opened.set()
    client.timeout_ms = 5000
    assert client.update_datastore("robot", -1, confirm_update=True) is True
    assert slow.rows == [1]
    assert client.get_server_last_update_id("robot") == store.latest_data_id()


def test_the_last_update_id_is_this_clients_last_applied_row(serve, connect):
    serve("robot")
    store = QueuedDataStore(100)
    client = connect(store)
    assert client.get_server_last_update_id("robot") == -1
    assert client.get_server_last_update_id("nothing") is None
    for n in (3, 4):
        store.batch_insert(list(range(n)))
        assert client.update_datastore("robot", -1, confirm_update=True)
        assert client.get_server_last_update_id("robot") == store.latest_data_id()


def test_rows_up_to_from_id_are_left_out(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(100)
    client = connect(store)
    store.batch_insert([0, 1, 2, 3, 4])
    assert client.update_datastore("robot", 2, confirm_update=True)
    assert contents(server) == [3, 4]
    store.insert(5)
    assert client.update_datastore("robot", 0, confirm_update=True)
    assert contents(server) == [3, 4, 5]
    assert client.update_datastore("nothing", -1) is False
    assert isinstance(client.last_error, UnknownRequest)


class Letters(DataStoreBase):
    """A store of a user's own, with opaque IDs and no ``take_after``."""

    def __init__(self):
        super().__init__(26)
        self.rows = []

    def latest_data_id(self):
        return self.rows[-1] if self.rows else ""

    def get_latest_data(self, from_id):
        start = self.rows.index(from_id) + 1 if from_id in self.rows else 0
        return self.rows[start:]

    def insert(self, data):
        self.rows.append(data)

    def __len__(self):
        return len(self.rows)


def test_ids_are_opaque(serve, connect):
    server = serve("robot")
    store = Letters()
    client = connect(store)
    for letter in "abc":
        store.insert(letter)
        assert client.update_datastore("robot", -1, confirm_update=True)
        assert client.get_server_last_update_id("robot") == letter
    assert contents(server) == ["a", "b", "c"]


def test_a_store_that_never_holds_still_is_an_error_not_a_hang(serve, connect):
    class Restless(Letters):
        count = itertools.count(1)

        def latest_data_id(self):
            return next(self.count)

    serve("robot")
    with pytest.raises(AgentlaceError, match=r"Restless.*take_after"):
        connect(Restless())


# -- the trainer's side ----------------------------------------------------------------------------


def test_the_data_callback_comes_after_insertion_with_rows_and_id(serve, connect):
    calls = Log()

    def callback(name, payload):
        calls((name, payload, len(server.data_store(name))))
        raise RuntimeError("a callback's own fault")

    server = serve("robot", data_callback=callback)
    store = QueuedDataStore(100)
    client = connect(store)
    for row in (step(0), step(1)):
        store.insert(row)
        assert client.update_datastore("robot", -1, confirm_update=True)
    calls.wait(2)
    for i, (name, payload, length) in enumerate(calls):
        assert (name, length, type(payload["last_id"])) == ("robot", i + 1, int)
        assert_same(payload["data"], [step(i)])
    assert server.counters()["robot"] == {"applied": 2, "rejected": 0, "missing": 0}


def test_a_store_needs_only_insert_and_gets_rows_in_order(serve, connect):
    class Plain:
        def __init__(self):
            self.rows = Log()
            self.insert = self.rows

    plain = Plain()
    serve().register_data_store("robot", plain)
    store = QueuedDataStore(100)
    client = connect(store)
    rows = [step(i) for i in range(10)]
    store.batch_insert(rows)
    assert client.update()
    assert_same(list(plain.rows.wait(10)), rows)


def test_a_store_that_raises_rejects_the_chunk_and_the_trainer_goes_on(serve, connect, caplog):
    class Picky(QueuedDataStore):
        def batch_insert(self, batch_data):
            if "bad" in batch_data:
                raise ValueError("I do not like this one")
            super().batch_insert(batch_data)

    server = serve()
    server.register_data_store("robot", Picky(100))
    store = QueuedDataStore(100)
    client = connect(store)
    for row in ("good", "bad", "better"):
        store.insert(row)
        assert client.update_datastore("robot", -1, confirm_update=True)
    assert contents(server) == ["good", "better"]
    assert server.counters()["robot"]["rejected"] == 1
    assert "I do not like this one" in caplog.text


@pytest.mark.parametrize("make", [ReplayBuffer, OwnStore])
def test_a_misfit_does_not_keep_the_others_out(serve, connect, make, caplog):
    told = Log()
    server = serve(data_callback=lambda name, payload: told(payload["data"]))
    server.register_data_store("robot", trained := make(100))
    store = QueuedDataStore(100)
    client = connect(store)
    good = [{"a": np.float32(i), "note": [i]} for i in range(6)]
    misfit = {"a": np.zeros(3, np.float32), "note": [0]}
    store.batch_insert([*good[:3], misfit, *good[3:], misfit])
    assert client.update_datastore("robot", -1, confirm_update=True)
    assert len(trained) == 6
    assert server.counters()["robot"] == {"applied": 6, "rejected": 2, "missing": 0}
    assert_same(told.wait(1)[0], good)
    assert "rejected 2 transitions" in caplog.text and "shape (3,)" in caplog.text


def test_a_server_stopped_and_started_again_goes_on_where_it_was(serve, connect):
    server = serve("robot")
    store = QueuedDataStore(1000)
    client = connect(store)
    for round in range(3):
        store.batch_insert([(round, i) for i in range(10)])
        assert client.update()
        if round == 1:
            server.stop()
            store.insert("meanwhile")
            assert client.update()
            server.start(threaded=True)
    rows = wait_for_rows(server, 31)
    assert server.counters()["robot"]["missing"] == 0
    assert rows == [
        *((0, i) for i in range(10)),
        *((1, i) for i in range(10)),
        "meanwhile",
        *((2, i) for i in range(10)),
    ]


def test_a_trainer_that_starts_empty_reads_what_the_streams_hold(serve, connect):
    first = serve("robot")
    store = QueuedDataStore(1000)
    client = connect(store)
    store.batch_insert(list(range(20)))
    assert client.update_datastore("robot", -1, confirm_update=True)
    first.stop()
    second = serve("robot")
    store.insert(20)
    assert client.update()
    assert wait_for_rows(second, 21) == list(range(21))


def test_nothing_is_left_for_the_next_run_when_both_said_goodbye(serve, connect):
    """Programs are run again and again against the same broker."""
    for run in range(3):
        server = serve("robot")
        assert len(server.data_store("robot")) == 0
        store = QueuedDataStore(100)
        client = connect(store)
        store.insert(run)
        assert client.update()
        assert wait_for_rows(server, 1) == [run]
        client.stop()
        server.stop()
        late = serve("robot")
        holds_for(lambda late=late: len(late.data_store("robot")) == 0, 0.1)
        late.stop()


# -- budgets and identities ------------------------------------------------------------------------


def test_a_stream_at_its_budget_blocks_then_is_false_and_loses_nothing(serve, connect):
    slow = SlowStore()
    server = serve()
    server.register_data_store("robot", slow, Retention(max_bytes=100_000))
    store = QueuedDataStore(1000)
    client = connect(store, timeout_ms=60)
    rows = [np.full(20_000, i, np.uint8) for i in range(12)]
    results = []
    for row in rows:
        store.insert(row)
        results.append(client.update())
    assert results[0] is True and results[-1] is False
    assert isinstance(client.last_error, StoreFull) and "trainer" in str(client.last_error)
    slow.opened.set()
    client.timeout_ms = 5000
    assert wait_until(client.update)
    wait_until(lambda: len(slow.rows) == 12)
    assert_same(list(slow.rows), rows)


def test_drop_oldest_keeps_the_newest_and_counts(serve, connect, caplog):
    slow = SlowStore()
    server = serve()
    retention = Retention(max_bytes=100_000, when_full="drop_oldest")
    server.register_data_store("robot", slow, retention)
    store = QueuedDataStore(1000)
    client = connect(store, timeout_ms=1000)
    for i in range(60):
        store.insert(np.full(10_000, i, np.uint8))
        assert client.update() is True
        assert slow.entered.wait(10)  # what a trainer had not begun to read is not missing to it
    assert "oldest transitions" in caplog.text
    slow.opened.set()
    wait_until(lambda: slow.rows and slow.rows[-1][0] == 59)
    numbers = [int(row[0]) for row in slow.rows]
    assert numbers == sorted(set(numbers)) and len(numbers) < 60
    assert server.counters()["robot"]["missing"] == 60 - len(numbers)


def test_a_newer_process_of_the_same_actor_shuts_the_older_out(serve, connect):
    server = serve("robot")
    old_store, new_store = QueuedDataStore(10), QueuedDataStore(10)
    zombie = connect(old_store, actor_id="arm-1")
    old_store.insert("old")
    assert zombie.update()
    successor = connect(new_store, actor_id="arm-1")
    new_store.insert("new")
    assert successor.update()
    old_store.insert("too late")
    with pytest.raises(ActorReplaced, match="arm-1"):
        zombie.update()
    new_store.insert("newer")
    assert successor.update_datastore("robot", -1, confirm_update=True)
    assert contents(server) == ["old", "new", "newer"]


# -- requests --------------------------------------------------------------------------------------


def test_requests_reach_the_callback_and_bring_its_reply(serve, connect):
    asked = Log()
    serve(request_callback=lambda kind, payload: asked((kind, payload)) or {"kind": kind})
    client = connect()
    info = {"environment": {"episode": {"r": np.float64(1.5), "l": np.int32(20)}, "done": True}}
    assert client.request("send-stats", info) == {"kind": "send-stats"}
    assert client.request("get-stats", {}) == {"kind": "get-stats"}
    assert_same(list(asked), [("send-stats", info), ("get-stats", {})])


def test_a_request_of_an_undeclared_type_is_none(serve, connect):
    asked = Log()
    serve(request_callback=asked)
    client = connect()
    assert client.request("invalid", {}) is None
    assert isinstance(client.last_error, UnknownRequest) and "'invalid'" in str(client.last_error)
    assert not asked


def test_the_trainer_refuses_a_type_that_a_client_should_not_have_sent(serve, connect):
    asked = Log()
    serve(request_callback=asked)
    client = connect()
    client.config.request_types.append("shutdown")
    with pytest.raises(UnknownRequest, match=r"'shutdown'.*'get-stats'"):
        client.request("shutdown", {})
    assert not asked


def test_without_a_callback_a_request_answers_an_empty_dict(serve, connect):
    serve()
    assert connect().request("get-stats", {}) == {}


def test_a_raising_callback_gives_none_and_the_reason(serve, connect):
    def callback(kind, payload):
        assert payload, "nothing to log"
        return {}

    serve(request_callback=callback)
    client = connect()
    assert client.request("send-stats", {}) is None
    assert isinstance(client.last_error, RemoteError)
    assert (client.last_error.type, client.last_error.message[:14]) == (
        "AssertionError",
        "nothing to log",
    )
    assert client.request("send-stats", {"a": 1}) == {}


def test_a_request_times_out_and_may_be_reset(serve, connect):
    opened = threading.Event()
    serve(request_callback=lambda kind, payload: {"waited": opened.wait(20)})
    client = connect(timeout_ms=100)
    assert client.req_rep_client.timeout_ms == 100
    assert client.request("get-stats", {}) is None
    assert isinstance(client.last_error, RequestTimeout)
    opened.set()
    client.req_rep_client.timeout_ms = 5000
    client.req_rep_client.reset_socket()
    assert client.timeout_ms == 5000
    assert client.request("get-stats", {}) == {"waited": True}


def test_what_is_refused_for_one_store_is_refused_for_all(serve, connect, monkeypatch):
    """The moment from which on a call is permitted may come between two stores."""
    config = TrainerConfig(5588, 5589, rate_limit=2)
    server = serve("a", "b", config=config)
    stores = {"a": QueuedDataStore(9), "b": QueuedDataStore(9)}
    client = connect(data_stores=stores, config=config)
    answers = [RateLimited("not yet"), None]

    def permit():
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(client, "_permit", permit)
    for store in stores.values():
        store.insert(1)
    assert client.update() is False
    assert len(answers) == 1
    assert client.update() is True
    assert not answers
    for name in stores:
        assert len(wait_for_rows(server, 1, name)) == 1


def test_rate_limit_counts_calls_per_client(serve, connect):
    config = TrainerConfig(5588, 5589, request_types=["get-stats"], rate_limit=2)
    server = serve("a", "b", config=config)
    stores = {"a": QueuedDataStore(9), "b": QueuedDataStore(9)}
    client, other = connect(data_stores=stores, config=config), connect(config=config)
    assert client.request("get-stats", {}) == {}
    assert client.request("get-stats", {}) is None
    assert isinstance(client.last_error, RateLimited)
    assert other.request("get-stats", {}) == {}

    def insert_and_update():
        for store in stores.values():
            store.insert(1)
        return client.update()

    assert insert_and_update() is False
    assert isinstance(client.last_error, RateLimited)
    started = time.monotonic()
    assert wait_until(insert_and_update)  # one call, though it sends two stores
    assert 0.2 < time.monotonic() - started < 5
    assert len(wait_for_rows(server, 2, "a")) == len(wait_for_rows(server, 2, "b"))


# -- networks --------------------------------------------------------------------------------------

SMALL = {"dense": {"kernel": np.eye(3, dtype=np.float32), "bias": np.zeros(3)}, "step": 7}
LARGE = {"encoder": np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32), **SMALL}


@pytest.mark.parametrize(
    "network",
    [SMALL, LARGE, np.arange(4), [np.ones(2), (np.zeros(1), None)]],
    ids=["small", "large", "array", "list"],
)
def test_a_network_arrives_as_it_was_published(serve, connect, network):
    server = serve()
    client = connect()
    seen = Log()
    client.recv_network_callback(seen)
    assert client.policy_version is None and client.policy_age_s is None
    assert server.publish_network(network) == 1
    assert_same(list(seen.wait()), [network])
    assert client.policy_version == server.published_version == 1
    assert 0 <= client.policy_age_s < 20


def test_a_frozen_dict_stays_one(serve, connect):
    core = pytest.importorskip("flax.core")
    server = serve()
    seen = Log()
    connect().recv_network_callback(seen)
    server.publish_network(core.freeze(SMALL))
    assert type(seen.wait()[0]) is core.FrozenDict
    assert_same(core.unfreeze(seen[0]), SMALL)


def test_a_late_actor_gets_the_newest_at_once(serve, connect):
    server = serve()
    for i in range(5):
        server.publish_network({"version": i})
    for _ in range(2):
        seen = Log()
        client = connect()
        client.recv_network_callback(seen)
        wait_until(lambda seen=seen: seen and seen[-1] == {"version": 4})
        assert client.policy_version == 5


def test_networks_never_go_backwards_or_come_twice(serve, connect):
    server = serve()
    seen = Log()
    connect().recv_network_callback(seen)
    for i in range(100):
        server.publish_network({"version": i})
    wait_until(lambda: seen and seen[-1]["version"] == 99)
    versions = [network["version"] for network in seen]
    assert versions == sorted(set(versions))


def test_a_network_is_a_snapshot(serve, connect):
    """A training loop that donates or reuses its buffers must not tear what it published."""
    server = serve()
    client = connect()
    torn = Log()

    def check(network):
        if len(np.unique(network["w"])) != 1:
            torn(network["w"])

    client.recv_network_callback(check)
    weights = {"w": np.zeros(500_000, np.float32)}
    for i in range(30):
        weights["w"][:] = i
        server.publish_network(weights)
    weights["w"][::2] = -1
    wait_until(lambda: client.policy_version == 30)
    assert not torn


def test_a_callback_that_raises_gets_the_next_network(serve, connect):
    server = serve()
    seen = Log()

    def callback(network):
        seen(network)
        raise RuntimeError("wrong shape")

    connect().recv_network_callback(callback)
    server.publish_network(1)
    seen.wait(1)
    server.publish_network(2)
    assert seen.wait(2) == [1, 2]


def test_a_network_of_an_earlier_run_does_not_come(serve, connect):
    """Another program may have used the same number, with another architecture."""
    earlier = serve()
    earlier.publish_network({"of": "another run"})
    witness = Log()
    connect().recv_network_callback(witness)
    witness.wait()
    earlier.stop()
    server = serve()
    client = connect()
    seen = Log()
    client.recv_network_callback(seen)
    holds_for(lambda: not seen and client.policy_version is None, 0.1)
    server.publish_network({"of": "this run"})
    assert seen.wait() == [{"of": "this run"}]
    assert witness.wait(2)[1] == {"of": "this run"}


def test_a_network_published_before_start_comes(serve, connect):
    server = serve(start=False)
    server.publish_network("early")
    server.start(threaded=True)
    seen = Log()
    connect().recv_network_callback(seen)
    assert seen.wait() == ["early"]


def test_chunks_name_their_actor(serve, connect):
    actors = Log()

    class Named(QueuedDataStore):
        def insert_chunk(self, chunk):
            actors(chunk.meta["actor"])
            self.batch_insert(chunk.rows())

    serve().register_data_store("robot", Named(100))
    for actor_id in ("left", "right"):
        store = QueuedDataStore(100)
        client = connect(store, actor_id=actor_id)
        store.batch_insert([1, 2])
        assert client.update_datastore("robot", -1, confirm_update=True)
    assert actors == ["left", "right"]


def test_transitions_are_stamped_with_the_policy_that_acted(serve, connect):
    stamps = Log()

    class Stamped(QueuedDataStore):
        def insert_chunk(self, chunk):
            stamps(chunk.meta.get("policy"))
            self.batch_insert(chunk.rows())

    server = serve()
    server.register_data_store("robot", Stamped(100))
    store = QueuedDataStore(100)
    client = connect(store)
    store.insert("random")
    client.update()
    seen = Log()
    client.recv_network_callback(seen)
    server.publish_network(1)
    seen.wait()
    store.insert("learned")
    client.update()
    stamps.wait(2)
    assert stamps[0] is None and stamps[1][1] == 1


# -- asynchronous updates and the end --------------------------------------------------------------


def test_the_asynchronous_update_sends_by_itself_and_once_more_at_stop(serve, connect, caplog):
    server = serve("robot")
    store = QueuedDataStore(100)
    client = connect(store)
    client.start_async_update(interval=0.05)
    client.start_async_update(interval=0.05)
    assert [t.name for t in threading.enumerate()].count("async update") == 1
    store.insert(1)
    assert wait_for_rows(server, 1) == [1]
    client.stop()
    assert "stopped" not in caplog.text
    store2 = QueuedDataStore(100)
    slow = connect(store2)
    slow.start_async_update(interval=60)
    store2.insert(2)
    slow.stop()
    assert wait_for_rows(server, 2) == [1, 2]


def test_after_stop_every_call_says_closed(serve, connect):
    serve("robot")
    client = connect(QueuedDataStore(10))
    client.stop()
    client.stop()
    assert client.update() is False
    assert isinstance(client.last_error, Closed)
    assert client.request("get-stats", {}) is None
    assert isinstance(client.last_error, Closed)


def test_strict_raises_what_is_otherwise_false_or_none(serve, connect):
    serve("robot")
    strict = connect(QueuedDataStore(10), strict=True)
    assert strict.update() is True
    strict.stop()
    with pytest.raises(Closed):
        strict.update()
    store = QueuedDataStore(10)
    store.insert(1)
    before = threading.active_count()
    with pytest.raises(UnknownRequest):
        connect(data_stores={"nothing": store}, strict=True)
    wait_until(lambda: threading.active_count() <= before, what="the client that failed is gone")


def test_configs_are_copied_and_compared_as_sets(serve, connect):
    mine = TrainerConfig(5588, 5589, ["send-stats", "get-stats", "get-stats"])
    mine.experimental_pipeline_port = 5547
    before = copy.deepcopy(mine)
    serve(request_callback=lambda kind, payload: {"kind": kind})
    client = connect(config=mine)
    mine.request_types.clear()
    assert client.request("get-stats", {}) == {"kind": "get-stats"}
    mine.request_types.extend(before.request_types)
    assert mine == before
