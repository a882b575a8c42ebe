"""Snapshots, over every store: only what is new is written, and a kill leaves a whole one."""

import itertools
import json
import os
import threading

import numpy as np
import pytest

from agentlace import DecodeError
from agentlace.codec import encode
from agentlace.data import FrameReplayBuffer, ReplayBuffer
from agentlace.data import row_files as module
from agentlace.data.data_store import put
from agentlace.data.sampler import LatestSampler, PrioritySampler, SequenceSampler
from agentlace.data.snapshots import Snapshots
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer

from .stores import STORES, replay_buffer, sample, torn, trajectory_store
from .support import chunk, same, sealed
from .test_frame_buffer import everything, observation, pieces, transitions


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def make(request):
    return request.param


def rows(start, end):
    return [sealed(i) for i in range(start, end)]


def size(folder):
    return sum(path.stat().st_size for path in folder.glob("*.rows"))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 4000)
    monkeypatch.setattr(module, "MERGE_BYTES", 2000)


@pytest.mark.parametrize("parts", [[30], [7, 1, 1, 30], [40, 40, 3], [5, 300, 2, 61], [100] * 3])
def test_a_restored_store_goes_on_as_if_nothing_had_been(make, parts, tmp_path, small_pieces):
    store, start = make(64, seed=3), 0
    snapshots = Snapshots(tmp_path, store)
    for n in parts:
        put(store, chunk(rows(start, start + n)))
        start += n
        snapshots.save({"steps": start})
    restored = make(64, seed=4)
    again = Snapshots(tmp_path, restored)
    assert again.restore() == {"steps": start}
    assert (len(restored), restored.inserted) == (len(store), store.inserted)
    for _ in range(2):
        mine, theirs = sample(restored, 50), sample(store, 50)
        assert not torn(mine)
        assert [t["n"] for t in mine] == [t["n"] for t in theirs]
        for each, its in ((store, snapshots), (restored, again)):
            put(each, chunk(rows(start, start + 20)))
            its.save()
        start += 20


def test_only_what_is_new_is_written(make, tmp_path, small_pieces):
    store = make(2000)
    snapshots = Snapshots(tmp_path, store)
    put(store, chunk(rows(0, 500)))
    first = snapshots.save()
    assert first == size(tmp_path) > 500 * 192
    put(store, chunk(rows(500, 505)))
    assert snapshots.save() < first / 20
    assert snapshots.save() <= 2 * module.PIECE_BYTES


def test_files_of_overwritten_rows_go_when_no_manifest_names_them(make, tmp_path, small_pieces):
    store = make(50)
    snapshots = Snapshots(tmp_path, store)
    for i in range(20):
        put(store, chunk(rows(50 * i, 50 * i + 50)))
        snapshots.save()
        named = set()
        for name in ("manifest.json", "manifest.previous.json"):
            path = tmp_path / name
            manifest = json.loads(path.read_bytes()) if path.exists() else {"segments": []}
            named |= {segment["file"] for segment in manifest["segments"]}
        assert {path.name for path in tmp_path.glob("*.rows")} == named


class Killed(BaseException):
    """Stands for the end of the process."""


def kills(monkeypatch):
    """Yield functions that let a save be killed at one after the other of its steps on disk."""
    for step in range(100):
        calls = []

        def dying(name, real=None, step=step, calls=calls):
            real = getattr(os, name)

            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) == step + 1:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "fsync"):
                patch.setattr(os, name, dying(name))
            yield
            if len(calls) <= step:
                return


def test_a_kill_at_any_moment_leaves_a_whole_snapshot(make, tmp_path, monkeypatch, small_pieces):
    found = set()
    for step, _ in enumerate(kills(monkeypatch)):
        folder = tmp_path / str(step)
        store = make(64)
        with pytest.MonkeyPatch.context() as unpatched:
            for name in ("replace", "fsync"):
                unpatched.setattr(os, name, REAL[name])
            put(store, chunk(rows(0, 40)))
            snapshots = Snapshots(folder, store)
            snapshots.save({"save": 1})
            put(store, chunk(rows(40, 60)))
        try:
            snapshots.save({"save": 2})
        except Killed:
            pass
        with pytest.MonkeyPatch.context() as unpatched:
            for name in ("replace", "fsync"):
                unpatched.setattr(os, name, REAL[name])
            restored = make(64)
            extra = Snapshots(folder, restored).restore()
            assert restored.inserted == {1: 40, 2: 60}[extra["save"]]
            assert not torn(sample(restored, 30))
            found.add(extra["save"])
            put(restored, chunk(rows(60, 90)))
            Snapshots(folder, restored).save()
    assert found == {1, 2}


REAL = {"replace": os.replace, "fsync": os.fsync}


def test_a_damaged_snapshot_gives_way_to_the_previous_one(make, tmp_path):
    store = make(64)
    snapshots = Snapshots(tmp_path, store)
    assert Snapshots(tmp_path, make(64)).restore() is None
    put(store, chunk(rows(0, 10)))
    snapshots.save({"save": 1})
    put(store, chunk(rows(10, 20)))
    snapshots.save({"save": 2})
    (tmp_path / "manifest.json").write_bytes(b"{")
    assert Snapshots(tmp_path, make(64)).restore() == {"save": 1}
    (tmp_path / "manifest.previous.json").unlink()
    with pytest.raises(DecodeError, match="damaged"):
        Snapshots(tmp_path, make(64)).restore()


def test_damaged_rows_are_noticed(tmp_path):
    store = replay_buffer(64)
    store.batch_insert(rows(0, 40))
    Snapshots(tmp_path, store).save()
    (path,) = tmp_path.glob("*.rows")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="damaged"):
        Snapshots(tmp_path, replay_buffer(64)).restore()


def test_stores_that_cannot_be_restored(tmp_path):
    store = replay_buffer(64)
    store.batch_insert(rows(0, 4))
    Snapshots(tmp_path, store).save()
    with pytest.raises(ValueError, match="empty"):
        Snapshots(tmp_path, store).restore()
    with pytest.raises(ValueError, match="ReplayBuffer, not a TrajectoryBufferDataStore"):
        Snapshots(tmp_path, trajectory_store(64)).restore()


def test_a_new_run_begins_anew_and_keeps_the_old_snapshot_once(tmp_path):
    old, new = replay_buffer(64), replay_buffer(64)
    old.batch_insert(rows(0, 30))
    Snapshots(tmp_path, old).save({"run": "old"})
    new.batch_insert(rows(100, 150))
    Snapshots(tmp_path, new).save({"run": "new"})
    restored = replay_buffer(64)
    assert Snapshots(tmp_path, restored).restore() == {"run": "new"}
    assert min(int(t["n"]) for t in sample(restored, 200)) >= 100
    assert json.loads((tmp_path / "manifest.previous.json").read_bytes())["extra"]["run"] == "old"


def test_an_empty_store_has_a_snapshot_too(make, tmp_path):
    assert Snapshots(tmp_path, make(8)).save({"a": 1}) == 0
    store = make(8)
    assert Snapshots(tmp_path, store).restore() == {"a": 1}
    put(store, chunk(rows(0, 5)))
    assert not torn(sample(store, 5))


def test_saving_goes_on_while_rows_come_in(make, tmp_path):
    store = make(2000)
    put(store, chunk(rows(0, 200)))
    snapshots = Snapshots(tmp_path, store)
    parts = itertools.cycle([chunk(rows(200 + 40 * i, 240 + 40 * i)) for i in range(20)])

    def insert():  # not a whole lap: what is overwritten before it is written is not saved
        for _ in range(25):
            put(store, next(parts))

    for _ in range(5):
        inserting = threading.Thread(target=insert)
        inserting.start()
        snapshots.save()
        inserting.join()
    restored = make(2000)
    Snapshots(tmp_path, restored).restore()
    assert not torn(sample(restored, 300))
    numbers = [int(row["n"]) for row in restored.get_latest_data(-1)]
    assert all((b - a) in (1, 1 - 800) for a, b in itertools.pairwise(numbers))
    assert len(numbers) > 150


# -- what belongs to one kind of store -------------------------------------------------------------


@pytest.mark.parametrize("is_registered", [True, False])
def test_priorities_come_back_with_their_rows(tmp_path, is_registered, small_pieces):
    def register(store):
        sampler = PrioritySampler(alpha=0.5, beta=0.5, source="n")
        store.register_sample_config("p", {"p": sampler, "n": LatestSampler()}, (0, 2))
        return sampler

    store = trajectory_store(64, min_trajectory_length=3, seed=1)
    sampler = register(store)
    snapshots = Snapshots(tmp_path, store)
    for i in range(157):
        store.insert(sealed(i), end_of_trajectory=i % 10 == 9)
        if i % 20 == 19:
            (data, _), rng = store.sample("p", 16), np.random.default_rng(i)
            sampler.update_priorities(data["p"]["indices"], rng.exponential(5, 16))
            snapshots.save()
    store.sample("p", 1)
    snapshots.save()
    restored = trajectory_store(64, min_trajectory_length=3, seed=1)
    if is_registered:
        register(restored)
    Snapshots(tmp_path, restored).restore()
    if not is_registered:
        register(restored)
    for _ in range(5):
        assert same(restored.sample("p", 50), store.sample("p", 50))
    assert len({*restored.sample("p", 500)[0]["p"]["weights"].tolist()}) > 5


def test_frames_whose_rows_have_been_overwritten_since_have_no_newest_row():
    buffer = FrameReplayBuffer(10)
    for start in range(0, 60, 3):
        put(buffer, chunk(transitions([3], lambda e, t, s=start: observation(s + t, e))))
    assert buffer._windows.newest(60) == [[None, 59, True]]
    assert buffer._windows.newest(20) == []


def test_a_priority_of_a_row_that_was_not_saved_is_forgotten():
    sampler = PrioritySampler()
    sampler.follow((0, 10), 64)
    sampler.update_priorities([8, 9], [100.0, 100.0])
    other = PrioritySampler()
    other.restore(sampler.state(), 64)
    other.follow((0, 8), 64)
    assert other.draw(1000, np.random.default_rng(0)).max() < 8
    other.follow((0, 10), 64)
    assert other.draw(1000, np.random.default_rng(0)).max() == 9


@pytest.mark.parametrize("length", [3, 10, 1000])
def test_trajectories_keep_their_bounds_and_the_one_in_progress(tmp_path, length, small_pieces):
    def trajectories():
        store = trajectory_store(64, min_trajectory_length=3, seed=1)
        window = SequenceSampler(begin=-4, end=4, source="n")
        store.register_sample_config("window", {"n": window}, (0, 2))
        return store

    store = trajectories()
    snapshots = Snapshots(tmp_path, store)
    for i in range(157):
        store.insert(sealed(i), end_of_trajectory=i % length == length - 1 or i % 31 == 30)
        if i % 13 == 0:
            snapshots.save()
    snapshots.save()
    restored = trajectories()
    again = Snapshots(tmp_path, restored)
    again.restore()
    for i in range(157, 170):
        for each in (store, restored):
            each.insert(sealed(i), end_of_trajectory=i == 165)
        assert restored._episodes.range == store._episodes.range
        assert same(restored.sample("window", 200), store.sample("window", 200))
    assert restored._trajectory == store._trajectory


@pytest.mark.parametrize("history", [1, 3])
def test_frames_are_written_once_and_histories_are_kept(tmp_path, history, small_pieces):
    given_rows = transitions([9, 30, 4, 25, 3, 40], lambda e, t: observation(t, e))
    store = FrameReplayBuffer(50, history=history)
    snapshots = Snapshots(tmp_path, store)
    for part in pieces(given_rows, [11, 20]):
        put(store, chunk(part))
        snapshots.save()
    restored = FrameReplayBuffer(50, history=history)
    Snapshots(tmp_path, restored).restore()
    assert same(everything(restored), everything(store))
    for each in (store, restored):
        each.batch_insert(given_rows[:20])
    assert same(everything(restored), everything(store))


def test_frames_cost_their_own_size(tmp_path):
    shape = (64, 64, 3)
    frames = np.random.default_rng(0).integers(0, 255, (101, *shape), np.uint8)
    store, plain = FrameReplayBuffer(200), ReplayBuffer(200)
    for a, b in itertools.pairwise(frames):
        for each in (store, plain):
            each.insert({"observations": {"w": a}, "next_observations": {"w": b}})
    once = Snapshots(tmp_path / "once", store).save()
    twice = Snapshots(tmp_path / "twice", plain).save()
    assert once < 1.02 * 101 * frames[0].nbytes < 0.6 * twice


def test_a_foreign_file_in_the_folder_is_no_snapshot(tmp_path):
    (tmp_path / "manifest.json").write_bytes(bytes(encode({"a": 1})))
    with pytest.raises(DecodeError):
        Snapshots(tmp_path, replay_buffer(4)).restore()


def rolled_back_store():
    return TrajectoryBuffer(100, [DataShape("x", (1 << 17,), "float64")], min_trajectory_length=3)


def row_of(value):
    return {"x": np.full(1 << 17, float(value))}


def test_a_row_that_was_rolled_back_does_not_come_back(tmp_path):
    store = rolled_back_store()
    for i in range(5):
        store.insert(row_of(i), end_of_trajectory=i == 4)
    store.insert(row_of(-1))
    snapshots = Snapshots(tmp_path, store)
    snapshots.save()
    store.end_trajectory()
    snapshots.save()
    restored = rolled_back_store()
    Snapshots(tmp_path, restored).restore()
    assert len(restored) == len(store) == 5
    for each in (store, restored):
        for i in range(3):
            each.insert(row_of(10 + i), end_of_trajectory=i == 2)
        assert each.dataset["x"][5:8, 0].tolist() == [10, 11, 12]
        assert len(set(each.metadata["trajectory_id"][5:8].ravel().tolist())) == 1


def test_a_snapshot_is_of_the_moment_when_it_began(make, tmp_path, small_pieces):
    """What is inserted while it is written does not get into it, however much."""
    for more in (0, 1, 30, 63, 64, 200):
        store, twin = make(64, seed=1), make(64, seed=1)
        for each in (store, twin):
            put(each, chunk(rows(0, 150)))
        export = store.export_rows

        def export_and_insert(*args, store=store, export=export, more=more):
            part = export(*args)
            if store.inserted < 150 + more:
                put(store, chunk(rows(store.inserted, store.inserted + 10)))
            return part

        store.export_rows = export_and_insert
        Snapshots(tmp_path / str(more), store).save()
        restored = make(64, seed=2)
        Snapshots(tmp_path / str(more), restored).restore()
        assert restored.inserted == 150
        found = [int(row["n"]) for row in restored.get_latest_data(-1)]
        expected = [int(row["n"]) for row in twin.get_latest_data(-1)]
        assert found == expected[len(expected) - len(found) :]
        assert len(found) >= len(expected) - more - 10
        for each in (restored, twin):
            put(each, chunk(rows(150, 300)))
        assert same(restored.get_latest_data(-1)[-1], twin.get_latest_data(-1)[-1])
        assert len(restored) == len(twin)


def test_a_roll_back_while_it_is_saved_stays_out_of_the_snapshot(tmp_path):
    store = rolled_back_store()
    for i in range(12):
        store.insert(row_of(i), end_of_trajectory=i == 11)
    store.insert(row_of(-1))
    export, calls = store.export_rows, []

    def export_and_roll_back(*args):
        calls.append(args)
        if len(calls) == 2:
            store.end_trajectory()
            store.insert(row_of(-2))
        return export(*args)

    store.export_rows = export_and_roll_back
    Snapshots(tmp_path, store).save()
    assert len(calls) == 2
    restored = rolled_back_store()
    Snapshots(tmp_path, restored).restore()
    assert restored.dataset["x"][:13, 0].tolist() == [*range(12), -1]
    for i in range(2):
        restored.insert(row_of(20 + i), end_of_trajectory=i == 1)
    assert len(restored) == 15
    assert len(set(restored.metadata["trajectory_id"][12:15].ravel().tolist())) == 1


def test_a_restored_store_goes_on_with_the_actor_of_its_last_rows(tmp_path):
    """Else its first chunk would end the trajectory in progress."""
    store = trajectory_store(64, min_trajectory_length=5)
    restored = trajectory_store(64, min_trajectory_length=5)

    def feed(each, first, end):
        part = chunk(rows(first, end))
        part.meta = {"actor": "robot"}
        put(each, part)

    feed(store, 0, 3)
    Snapshots(tmp_path, store).save()
    Snapshots(tmp_path, restored).restore()
    feed(restored, 3, 6)
    assert len(restored) == 6
    assert [int(row["n"]) for row in restored.get_latest_data(-1)] == [0, 1, 2, 3, 4]
