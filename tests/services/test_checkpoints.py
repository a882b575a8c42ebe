"""A trainer's checkpoints: what is in them, what is refused, and what a restored one continues."""

import contextlib
import json
import logging
import os
import shutil
import threading

import numpy as np
import pytest

from agentlace import (
    AgentlaceError,
    BrokerURL,
    CheckpointError,
    CheckpointPolicy,
    Retention,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.data import (
    DataShape,
    DataStoreBase,
    FrameReplayBuffer,
    QueuedDataStore,
    ReplayBuffer,
)
from agentlace.data.trajectory_data_store import TrajectoryBufferDataStore
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys

from .support import InThread, assert_same, wait_until

CONFIG = TrainerConfig(5555, 5556, request_types=["ping"])


class OwnStore(DataStoreBase):
    """A store as a program writes it, that takes part in checkpoints."""

    def __init__(self, capacity):
        super().__init__(capacity)
        self.rows = []

    def insert(self, data):
        self.rows.append(data)

    def __len__(self):
        return len(self.rows)

    def save_to(self, folder):
        os.makedirs(os.path.join(folder, "deep"))
        np.savez(os.path.join(folder, "deep", "rows.npz"), n=[int(row["n"]) for row in self.rows])

    def load_from(self, folder):
        with np.load(os.path.join(folder, "deep", "rows.npz")) as file:
            self.rows = [{"n": n} for n in file["n"]]


def trajectory_store(capacity):
    shapes = [DataShape("n", (), "int64"), DataShape("image", (8, 8, 3), "uint8")]
    return TrajectoryBufferDataStore(capacity, shapes, min_trajectory_length=5)


def queue(capacity):
    return QueuedDataStore(capacity)


def replay_buffer(capacity):
    return ReplayBuffer(capacity)


STORES = [replay_buffer, trajectory_store, queue, OwnStore]


def numbers(store):
    """Return the numbers of all transitions in a store, in their order."""
    if hasattr(store, "rows"):
        return [int(row["n"]) for row in store.rows]
    if isinstance(store, TrajectoryBufferDataStore):
        return [int(n) for n in store.dataset["n"][: len(store)]]
    return [int(row["n"]) for row in store.get_latest_data(-1)]


class Actor:
    """Sends numbered transitions."""

    def __init__(self, broker, actor_id="robot", store="env"):
        self.store = QueuedDataStore(100_000)
        self.client = TrainerClient(
            store,
            "localhost",
            CONFIG,
            self.store,
            broker=broker,
            actor_id=actor_id,
            timeout_ms=2000,
        )
        self.sent = 0

    def send(self, n, confirm=False):
        for _ in range(n):
            image = np.full((8, 8, 3), self.sent % 251, np.uint8)
            self.store.insert({"n": np.int64(self.sent), "image": image})
            self.sent += 1
        wait_until(self.client.update, what="update()")
        if confirm:
            name = self.client.client_name
            assert self.client.update_datastore(name, -1, confirm_update=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop()


@pytest.fixture
def serve(broker_url, running):
    """Return a function that makes a trainer with stores, which is stopped at the end."""

    def serve(start=True, broker=broker_url, stores=None, config=CONFIG, retention=None, **kwargs):
        server = running(TrainerServer(config, broker=broker, **kwargs))
        for name, store in (stores or {"env": ReplayBuffer(1000)}).items():
            server.register_data_store(name, store, retention)
        if start:
            server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def channel(broker_url):
    with contextlib.closing(Broker(BrokerURL.parse(broker_url)).channel()) as channel:
        yield channel


@pytest.fixture
def keys(broker_url):
    return ServiceKeys(BrokerURL.parse(broker_url).namespace, "trainer", 5555).store("env")


def entries(channel, keys, actor="robot"):
    return channel.call("XLEN", keys.stream(actor))


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", STORES)
def test_a_restored_trainer_goes_on_where_its_checkpoint_ends(
    make, serve, broker_url, running, tmp_path
):
    server = serve(stores={"env": make(1000)})
    actor = running(Actor(broker_url))
    actor.send(53, confirm=True)
    server.save(tmp_path)
    actor.send(31, confirm=True)
    server.stop()

    server = serve(start=False, stores={"env": make(1000)})
    assert server.restore(tmp_path) is None
    assert numbers(server.data_store("env")) == list(range(53))
    server.start(threaded=True)
    actor.send(10, confirm=True)
    assert numbers(server.data_store("env")) == list(range(94))
    assert server.counters() == {"env": {"applied": 94, "rejected": 0, "missing": 0}}


def test_each_store_has_its_own_positions(serve, broker_url, running, tmp_path):
    stores = {"a": ReplayBuffer(100), "b/../b": ReplayBuffer(100)}
    server = serve(stores=stores)
    actors = {name: running(Actor(broker_url, store=name)) for name in stores}
    actors["a"].send(5, confirm=True)
    server.save(tmp_path)
    actors["b/../b"].send(7, confirm=True)
    server.save(tmp_path)
    server.stop()
    server = serve(start=False, stores={name: ReplayBuffer(100) for name in stores})
    server.restore(tmp_path)
    assert [numbers(server.data_store(n)) for n in stores] == [list(range(5)), list(range(7))]
    server.start(threaded=True)
    for name, actor in actors.items():
        actor.send(3, confirm=True)
        assert numbers(server.data_store(name)) == list(range(actor.sent))


def test_the_programs_own_tree_comes_back_as_it_was(serve, tmp_path):
    agent = {
        "params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "frozen": (1, None, "x")},
        "rng": np.array([1, 2], np.uint32),
        "steps": 7,
    }
    server = serve()
    server.save(tmp_path, extra=agent)
    agent["params"]["w"][:] = 0
    server.save(tmp_path)  # keeps what was saved before
    for extra in ([1, (2, 3)], {}, np.arange(3)):
        server.save(tmp_path / "other", extra=extra)
        again = serve(start=False)
        assert_same(again.restore(tmp_path / "other"), extra)
    restored = serve(start=False).restore(tmp_path)
    agent["params"]["w"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_same(restored, agent)
    with pytest.raises(AgentlaceError, match="agent/policy"):
        server.save(tmp_path, extra={"agent": {"policy": object()}})
    assert_same(serve(start=False).restore(tmp_path), agent)


def test_networks_go_on_from_their_number_and_are_newer_than_all_before(
    serve, broker_url, running, tmp_path
):
    server = serve()
    actor = running(Actor(broker_url))
    seen = []
    actor.client.recv_network_callback(lambda tree: seen.append(int(tree["n"])))
    for n in range(1, 4):
        assert server.publish_network({"n": np.int64(n)}) == n
    wait_until(lambda: seen and seen[-1] == 3)
    server.save(tmp_path)
    assert server.publish_network({"n": np.int64(4)}) == 4
    wait_until(lambda: seen[-1] == 4)
    before = actor.client._policy
    server.stop()

    server = serve(start=False)
    server.restore(tmp_path)
    assert server.published_version == 3
    server.start(threaded=True)
    assert server.publish_network({"n": np.int64(40)}) == 4
    wait_until(lambda: seen[-1] == 40)
    assert actor.client._policy > before and actor.client.policy_version == 4
    server.save(tmp_path)
    assert json.loads(json.loads((tmp_path / "checkpoint.json").read_bytes())["content"])[
        "weights"
    ] == list(server._newest_version())


def test_only_what_is_new_is_written(serve, broker_url, running, tmp_path):
    server = serve(stores={"env": ReplayBuffer(50_000)})
    actor = running(Actor(broker_url))
    for _ in range(5):
        actor.send(8000, confirm=True)
    server.save(tmp_path)
    before = {path.name for path in (tmp_path / "store-env").iterdir()}
    actor.send(10, confirm=True)
    server.save(tmp_path)
    after = {path.name for path in (tmp_path / "store-env").iterdir()}
    (new,) = after - before
    assert (tmp_path / "store-env" / new).stat().st_size < 50_000
    server.save(tmp_path)
    server.save(tmp_path)
    named = {s["file"] for s in content(tmp_path)["stores"]["env"]["record"]["segments"]}
    assert {path.name for path in (tmp_path / "store-env").iterdir()} == named


def content(folder, name="checkpoint.json"):
    return json.loads(json.loads((folder / name).read_bytes())["content"])


def test_content_and_positions_belong_together_however_busy_it_is(
    serve, broker_url, running, tmp_path
):
    """Checkpoints are taken while chunks of two actors stream in; each is exact."""

    class Lingering(ReplayBuffer):
        """Spends most of its time where the rows are in, and the position has not moved."""

        def insert_chunk(self, chunk):
            refused = super().insert_chunk(chunk)
            threading.Event().wait(0.003)
            return refused

    server = serve(stores={"env": Lingering(100_000)})
    stop = threading.Event()
    actors = [running(Actor(broker_url, name)) for name in ("a", "b")]

    def play(actor):
        while not stop.is_set():
            actor.send(7)

    playing = [InThread(lambda actor=actor: play(actor)) for actor in actors]
    counts = []
    try:
        for i in range(6):
            wait_until(lambda i=i: server.data_store("env").inserted > 100 * i)
            server.save(tmp_path / str(i))
    finally:
        stop.set()
        for thread in playing:
            thread.result()
    for i in range(6):
        manifest = content(tmp_path / str(i))["stores"]["env"]
        restored = serve(start=False, stores={"env": Lingering(100_000)})
        restored.restore(tmp_path / str(i))
        found = numbers(restored.data_store("env"))
        ends = [int(at.split("-")[1]) for at in manifest["positions"].values()]
        assert sorted(found) == sorted(n for end in ends for n in range(end))
        counts.append(len(found))
    assert counts == sorted(set(counts))


def test_a_save_need_not_be_waited_for(serve, broker_url, running, tmp_path):
    server = serve(stores={"env": OwnStore(100)})
    actor = running(Actor(broker_url))
    actor.send(5, confirm=True)
    began, go_on = threading.Event(), threading.Event()
    store = server.data_store("env")
    agent = {"w": np.zeros(3)}
    real = store.save_to

    assert server.save(tmp_path, extra=agent, wait=False) is True
    agent["w"][:] = 9
    wait_until(lambda: (tmp_path / "checkpoint.json").exists())
    assert_same(
        serve(start=False, stores={"env": OwnStore(9)}).restore(tmp_path), {"w": np.zeros(3)}
    )

    def slow(folder):
        began.set()
        assert go_on.wait(20)
        real(folder)

    store.save_to = slow
    saving = InThread(lambda: server.save(tmp_path))
    assert began.wait(20)
    assert server.save(tmp_path, wait=False) is False
    go_on.set()
    assert saving.result() is True


# -- the streams wait for the checkpoint -----------------------------------------------------------


def test_the_streams_keep_what_no_checkpoint_holds(
    serve, broker_url, running, tmp_path, channel, keys
):
    """What the checkpoint holds gives way to what comes, and nothing else does."""
    server = serve(checkpoint=tmp_path, retention=Retention(max_bytes=30_000))
    actor = running(Actor(broker_url))
    for _ in range(3):
        actor.send(20, confirm=True)
    assert actor.client.get_server_last_update_id("env") == 59
    server.save()
    wait_until(lambda: channel.call("HGET", keys.cursor(server_consumer(channel, keys)), "robot"))
    send_until_full(actor)
    (first, _), *_ = channel.call("XRANGE", keys.stream("robot"), "-", "+", "COUNT", 1)
    assert bytes(first).endswith(b"-61")
    wait_until(lambda: actor.client.get_server_last_update_id("env") == actor.sent - 2)
    kill(server)

    server = serve(start=False, checkpoint=tmp_path)
    server.restore()
    server.start(threaded=True)
    wait_until(lambda: len(server.data_store("env")) == actor.sent - 1)
    server.save()
    actor.send(1, confirm=True)
    assert numbers(server.data_store("env")) == list(range(actor.sent))
    assert server.counters()["env"]["missing"] == 0


def send_until_full(actor):
    """Send one transition at a time until one finds no room; returns the reason."""
    actor.client.timeout_ms = 300
    while actor.client.update():
        actor.store.insert({"n": np.int64(actor.sent), "image": np.zeros((8, 8, 3), np.uint8)})
        actor.sent += 1
        assert actor.sent < 1000
    actor.client.timeout_ms = 2000
    return str(actor.client.last_error)


def server_consumer(channel, keys):
    (name,) = channel.call("SMEMBERS", keys.consumers)
    return bytes(name).decode()


def kill(server):
    """End a trainer in this process without anything it says at the end."""
    for filled in server._stores._filled.values():
        filled.consumer._cursor.publish = lambda *args: None
    server.stop()


def test_a_full_stream_waits_for_the_checkpoint(serve, broker_url, running, tmp_path):
    server = serve(checkpoint=tmp_path, retention=Retention(max_bytes=20_000))
    actor = running(Actor(broker_url))
    assert "has not saved them yet" in send_until_full(actor)
    server.save()
    wait_until(actor.client.update)
    wait_until(lambda: numbers(server.data_store("env")) == list(range(actor.sent)))


def test_stores_that_are_left_out_do_not_hold_their_streams(
    serve, broker_url, running, tmp_path, channel
):
    class Unsaved(DataStoreBase):
        def insert(self, data):
            pass

        def __len__(self):
            return 0

    stores = {"env": ReplayBuffer(100), "log": Unsaved(1)}
    policy = CheckpointPolicy(tmp_path, stores=["env"])
    server = serve(checkpoint=policy, stores=stores)
    actor = running(Actor(broker_url, store="log"))
    actor.send(5, confirm=True)
    namespace = BrokerURL.parse(broker_url).namespace
    keys = ServiceKeys(namespace, "trainer", 5555).store("log")
    wait_until(lambda: channel.call("HGET", keys.cursor(server_consumer(channel, keys)), "robot"))
    server.save()
    assert content(tmp_path)["stores"].keys() == {"env"}


def test_what_was_let_go_after_an_older_checkpoint_is_reported(
    serve, broker_url, running, tmp_path, channel, keys, caplog
):
    """A checkpoint for which the streams did not wait: the gap is counted, and said at once."""
    server = serve(retention=Retention(max_bytes=20_000))
    actor = running(Actor(broker_url))
    actor.send(20, confirm=True)
    server.save(tmp_path)
    for _ in range(10):
        actor.send(20, confirm=True)
    assert entries(channel, keys) < 10
    server.stop()
    actor.client.stop()  # says goodbye: nobody will send anything that shows the gap
    wait_until(lambda: entries(channel, keys) == 0)

    server = serve(start=False)
    server.restore(tmp_path)
    with caplog.at_level(logging.WARNING):
        server.start(threaded=True)
    assert server.counters()["env"]["missing"] == 200
    assert "200 transitions of actor 'robot' are lost" in caplog.text
    actor = running(Actor(broker_url))
    actor.send(3, confirm=True)
    assert server.counters()["env"] == {"applied": 23, "rejected": 0, "missing": 200}


def test_what_was_let_go_in_part_is_reported_once(
    serve, broker_url, running, tmp_path, channel, keys
):
    server = serve(retention=Retention(max_bytes=20_000))
    actor = running(Actor(broker_url))
    actor.send(20, confirm=True)
    server.save(tmp_path)
    for _ in range(10):
        actor.send(20, confirm=True)
    kept = 20 * entries(channel, keys)
    server.stop()
    server = serve(start=False)
    server.restore(tmp_path)
    server.start(threaded=True)
    actor.send(1, confirm=True)
    assert 0 < kept < 200
    expected = [*range(20), *range(220 - kept, 221)]
    assert numbers(server.data_store("env")) == expected
    assert server.counters()["env"]["missing"] == 200 - kept


# -- what is refused -------------------------------------------------------------------------------


class Plain(DataStoreBase):
    def insert(self, data):
        pass

    def __len__(self):
        return 0


def test_a_store_that_cannot_be_saved_is_refused_by_name(serve, tmp_path):
    stores = {"env": ReplayBuffer(10), "mine": Plain(10)}
    server = serve(stores=stores)
    with pytest.raises(CheckpointError, match=r"'mine' is a Plain.*save_to.*stores="):
        server.save(tmp_path)
    assert not (tmp_path / "checkpoint.json").exists()
    server.save(tmp_path, stores=["env"])
    server.stop()
    with pytest.raises(CheckpointError, match="'mine'"):
        serve(stores=stores, checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"\['nose'\]"):
        server.save(tmp_path, stores=["nose"])
    with pytest.raises(CheckpointError, match="path"):
        server.save()


@pytest.fixture
def saved(serve, broker_url, running, tmp_path):
    """A folder with a checkpoint of 20 transitions, and the one before, of 10."""
    folder = tmp_path / "saved"
    server = serve()
    actor = running(Actor(broker_url))
    for n in (1, 2):
        actor.send(10, confirm=True)
        server.save(folder, extra={"save": n, "big": np.arange(5000)})
    server.stop()
    return folder


def damage(path, where=-100):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def newest_rows(folder):
    return folder / "store-env" / content(folder)["stores"]["env"]["record"]["segments"][-1]["file"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: (f / "checkpoint.json").write_bytes(b""), "checkpoint.json cannot be read"),
        (lambda f: damage(f / "checkpoint.json"), "checkpoint.json cannot be read"),
        (lambda f: damage(newest_rows(f)), "other content than was saved"),
        (lambda f: newest_rows(f).unlink(), r"rows is missing"),
        (lambda f: os.truncate(newest_rows(f), 10), "has 10 bytes instead of"),
        (lambda f: damage(f / content(f)["extra"][1]["file"]), "other content than was saved"),
        (lambda f: (f / "checkpoint.json").write_bytes(b'{"format": "x"}'), "no checkpoint's man"),
        (
            lambda f: (f / "checkpoint.json").write_bytes(
                (f / "checkpoint.json").read_bytes().replace(b'"version": 1', b'"version": 2')
            ),
            "has version 2, not 1",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken_on_command(
    saved, serve, harm, reason
):
    harm(saved)
    server = serve(start=False)
    with pytest.raises(CheckpointError, match=f"{reason}.*previous=True") as caught:
        server.restore(saved)
    assert str(saved) in str(caught.value)
    assert len(server.data_store("env")) == 0
    assert server.restore(saved, previous=True)["save"] == 1
    assert numbers(server.data_store("env")) == list(range(10))
    server.save(saved)  # in the place of the damaged one; the one before stays
    assert serve(start=False).restore(saved)["save"] == 1
    assert content(saved, "checkpoint.previous.json")["stores"]["env"]["counters"]["applied"] == 10


def test_foreign_checkpoints_are_refused(saved, serve, broker_url, tmp_path):
    other = TrainerConfig(5999, 5556)
    with pytest.raises(CheckpointError, match=r"trainer:5555.*trainer:5999"):
        serve(start=False, config=other).restore(saved)
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        serve(start=False).restore(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"\['env'\] are not registered"):
        serve(start=False, stores={"other": ReplayBuffer(10)}).restore(saved)
    with pytest.raises(CheckpointError, match=r"'env'.*ReplayBuffer, not a QueuedDataStore"):
        serve(start=False, stores={"env": QueuedDataStore(10)}).restore(saved)
    with pytest.raises(CheckpointError, match=r"no stores \['x'\]"):
        serve(start=False).restore(saved, stores=["x"])
    full = ReplayBuffer(10)
    full.insert({"n": 1})
    with pytest.raises(CheckpointError, match=r"'env'.*only an empty store"):
        serve(start=False, stores={"env": full}).restore(saved)
    with pytest.raises(AgentlaceError, match="after start"):
        serve().restore(saved)


def test_a_checkpoint_that_was_not_restored_is_not_overwritten(saved, serve):
    server = serve(start=False)
    with pytest.raises(CheckpointError, match="not restored by this one"):
        server.save(saved)
    with pytest.raises(CheckpointError, match="not restored by this one"):
        serve(checkpoint=saved)
    server.restore(saved)
    zombie = serve(start=False)
    zombie.restore(saved)
    server.save(saved)
    with pytest.raises(CheckpointError, match="not restored by this one"):
        zombie.save(saved)  # it slept while its successor went on
    shutil.rmtree(saved)
    serve(start=False).save(saved)


def test_the_first_start_finds_no_checkpoint_yet(serve, tmp_path):
    server = serve(start=False, checkpoint=tmp_path / "c")
    assert server.restore() is None
    server.start(threaded=True)
    server.save(extra=[1])
    server.stop()
    assert serve(start=False, checkpoint=tmp_path / "c").restore() == [1]


def test_the_frame_buffer_takes_part(serve, broker_url, running, tmp_path):
    def row(n):
        return {
            "observations": {"wrist": np.full((8, 8, 3), n, np.uint8)},
            "next_observations": {"wrist": np.full((8, 8, 3), n + 1, np.uint8)},
            "n": np.int64(n),
        }

    server = serve(stores={"env": FrameReplayBuffer(100)})
    actor = running(Actor(broker_url))
    actor.store.batch_insert([row(n) for n in range(20)])
    assert actor.client.update_datastore("env", -1, confirm_update=True)
    server.save(tmp_path)
    server.stop()
    server = serve(start=False, stores={"env": FrameReplayBuffer(100)})
    server.restore(tmp_path)
    server.start(threaded=True)
    actor.store.batch_insert([row(n) for n in range(20, 30)])
    assert actor.client.update_datastore("env", -1, confirm_update=True)
    found = server.data_store("env").get_latest_data(-1)
    for n, transition in enumerate(found):
        assert_same(transition["next_observations"], row(n)["next_observations"])
    assert len(found) == 30
