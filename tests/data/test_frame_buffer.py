"""The replay buffer that stores frames once, against one that stores everything."""

import itertools

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlace import SchemaMismatch
from agentlace.codec import encode_chunk
from agentlace.data import ReplayBuffer
from agentlace.data.data_store import put
from agentlace.data.frame_buffer import FrameReplayBuffer
from agentlace.data.frame_pool import FramePool
from agentlace.data.snapshots import Snapshots

from .support import chunk, row, same

BOTH = ("observations", "next_observations")


def frame(number, episode, shape=(4, 4, 3)):
    """Return a frame that tells its number; every fifth is black, as when a camera starts."""
    value = np.random.default_rng((number, episode)).integers(1, 255, shape, np.uint8)
    return np.zeros(shape, np.uint8) if number % 5 == 0 else value


def observation(t, episode):
    return {
        "wrist": frame(t, episode),
        "scene": {"front": frame(t + 100, episode, (2, 6))},
        "state": np.array([t, episode], np.float32),
    }


def stack(episode, t, history):
    """Return the observation with its history, the first of the episode repeated."""
    shown = [observation(max(0, s), episode) for s in range(t - history + 1, t + 1)]
    return {
        "wrist": np.stack([o["wrist"] for o in shown]),
        "scene": {"front": np.stack([o["scene"]["front"] for o in shown])},
        "state": shown[-1]["state"],
    }


def transitions(lengths, observe):
    """Return the transitions of episodes of these lengths; every other one is cut by a limit."""
    rows = []
    for episode, length in enumerate(lengths):
        seen = [observe(episode, t) for t in range(length + 1)]
        for t in range(length):
            last = t == length - 1
            rows.append(
                {
                    "observations": seen[t],
                    "next_observations": seen[t + 1],
                    "rewards": np.float32(len(rows)),
                    "masks": np.float32(not last or episode % 2),
                    "dones": last,
                }
            )
    return rows


def everything(buffer):
    return buffer.sample(len(buffer), indx=np.arange(len(buffer)))


def pieces(rows, sizes):
    start = 0
    while start < len(rows):
        for size in sizes:
            if part := rows[start : start + size]:
                yield part
            start += size


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    capacity=st.integers(1, 60),
    history=st.integers(1, 4),
    stacked=st.booleans(),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    by_chunk=st.booleans(),
)
def test_it_holds_what_a_buffer_holds_that_stores_everything(
    lengths, capacity, history, stacked, sizes, by_chunk
):
    shown = transitions(lengths, lambda e, t: stack(e, t, history))
    given_rows = shown if stacked else transitions(lengths, lambda e, t: observation(t, e))
    naive = ReplayBuffer(capacity)
    buffer = FrameReplayBuffer(capacity, history=history, stacked=stacked)
    parts = zip(pieces(given_rows, sizes), pieces(shown, sizes), strict=True)
    for part, expected in parts:
        assert not put(buffer, chunk(part)) if by_chunk else buffer.batch_insert(part) is None
        naive.batch_insert(expected)
        wanted = everything(naive)
        if history == 1 and not stacked:
            for key in BOTH:
                wanted[key]["wrist"] = wanted[key]["wrist"][:, 0]
                wanted[key]["scene"]["front"] = wanted[key]["scene"]["front"][:, 0]
        assert same(everything(buffer), wanted)
    frames_once = buffer._windows._pool.used
    kept = given_rows[-capacity:]
    assert frames_once <= len(kept) + sum(bool(r["dones"]) for r in kept) + history + 1


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(1, 60), history=st.integers(1, 3))
def test_packed_frames_are_the_observations_and_one_more(lengths, capacity, history):
    buffer = FrameReplayBuffer(capacity, history=history, stacked=True)
    buffer.batch_insert(transitions(lengths, lambda e, t: stack(e, t, history)))
    rows = np.arange(len(buffer))
    plain = buffer.sample(0, indx=rows)
    packed = buffer.sample(0, indx=rows, pack_obs_and_next_obs=True)
    for name in ("wrist", "scene"):
        assert name not in packed["next_observations"]
    both = packed["observations"]["wrist"]
    assert np.array_equal(both[:, :-1], plain["observations"]["wrist"])
    assert np.array_equal(both[:, 1:], plain["next_observations"]["wrist"])
    for key in BOTH:
        assert same(packed[key]["state"], plain[key]["state"])


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("stacked", [True, False])
def test_what_it_hands_out_is_what_was_inserted_and_travels_once(history, stacked):
    observe = (lambda e, t: stack(e, t, history)) if stacked else lambda e, t: observation(t, e)
    rows = transitions([9, 4, 13], observe)
    buffer, other = (
        FrameReplayBuffer(20, history=history, stacked=stacked, seed=0) for _ in range(2)
    )
    buffer.batch_insert(rows)
    taken = buffer.take_after(-1)
    assert (len(taken.rows), taken.last_id, taken.lost) == (20, 25, 6)
    assert all(same(a, b) for a, b in zip(taken.rows, rows[6:], strict=True))
    put(other, chunk(taken.rows))
    if not stacked:
        large = transitions([20], lambda e, t: {"wrist": frame(t + 1, e, (64, 64, 3))})
        once = FrameReplayBuffer(20)
        once.batch_insert(large)
        size = len(bytes(encode_chunk(once.get_latest_data(-1))))
        assert size < 1.2 * 21 * 64 * 64 * 3


def test_rows_of_two_actors_may_come_by_turns():
    rows = [transitions([30], lambda e, t, a=a: observation(t, a)) for a in (1, 2)]
    buffer, naive = FrameReplayBuffer(25), ReplayBuffer(25)
    for start in range(0, 30, 4):
        for part in rows:
            put(buffer, chunk(part[start : start + 4]))
            naive.batch_insert(part[start : start + 4])
    assert same(everything(buffer), everything(naive))


def test_bare_frames_and_named_ones():
    bare = FrameReplayBuffer(10)
    named = FrameReplayBuffer(10, frames=["state"])
    for t in range(14):
        bare.insert({key: frame(t + i + 1, 0) for i, key in enumerate(BOTH)})
        named.insert({key: observation(t + i, 0) for i, key in enumerate(BOTH)})
    batch = bare.sample(50)
    assert batch.keys() == set(BOTH) and batch["observations"].shape == (50, 4, 4, 3)
    assert named._cameras == {"state": "observations/state"}
    step = named.sample(50)
    assert (step["next_observations"]["state"] - step["observations"]["state"])[:, 0].min() == 1
    assert named.sample(3, keys=["next_observations"]).keys() == {"next_observations"}


def test_frames_in_files(tmp_path):
    rows = transitions([7, 30, 2, 2, 1, 1, 1, 1, 40], lambda e, t: observation(t, e))
    inside = FrameReplayBuffer(16)
    mapped = FrameReplayBuffer(16, folder=tmp_path / "frames")
    for buffer in (inside, mapped):
        buffer.batch_insert(rows)
    assert same(everything(mapped), everything(inside))
    names = {path.name for path in (tmp_path / "frames").iterdir()}
    assert names == {"wrist.frames", "scene.front.frames"}


@pytest.mark.parametrize("folder", [None, "frames"])
def test_a_pool_that_is_too_small_grows(tmp_path, folder):
    """Transitions that share nothing need two frames each."""
    buffer = FrameReplayBuffer(3000, folder=folder and tmp_path / folder)
    naive = ReplayBuffer(3000)
    rows = transitions([1] * 5000, lambda e, t: {"w": frame(e % 7 + 1, t + e, (2, 2))})
    for part in pieces(rows, [700]):
        buffer.batch_insert(part)
        naive.batch_insert(part)
    assert same(everything(buffer), everything(naive))
    assert buffer._windows._pool.used == 6000


# -- memory ----------------------------------------------------------------------------------------


def test_memory_is_that_of_the_frames():
    """The frames of a lap are written over those of the lap before."""
    shape, capacity = (64, 64, 3), 1000
    buffer = FrameReplayBuffer(capacity)
    frames = np.random.default_rng(0).integers(0, 255, (101, 2, *shape), np.uint8)

    def episode():
        seen = [{"a": f[0], "b": f[1]} for f in frames]
        pairs = itertools.pairwise(seen)
        rows = [{"observations": a, "next_observations": b, "n": np.int64(0)} for a, b in pairs]
        put(buffer, chunk(rows))

    for _ in range(10):
        episode()
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(20):
        episode()
    grown = process.memory_info().rss - before
    assert buffer.nbytes <= capacity * 1.03 * 2 * 64 * 64 * 3
    assert grown < 0.4 * buffer.nbytes


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"observations": {"wrist": np.zeros((2, 4, 4, 3), np.uint8)}}, "next_observations/wrist"),
        (
            {"next_observations": {"wrist": np.zeros((4, 4, 1), "u1")}},
            "next_observations/wrist",
        ),
        ({"observations": {"wrist": np.zeros((4, 4, 3))}}, "observations"),
    ],
)
def test_transitions_without_frames_that_fit(change, path):
    good = {key: {"wrist": np.zeros((4, 4, 3), np.uint8)} for key in BOTH}
    buffer = FrameReplayBuffer(10)
    with pytest.raises(SchemaMismatch) as caught:
        buffer.insert({**good, **change})
    assert caught.value.path == path
    buffer.insert(good)
    with pytest.raises(SchemaMismatch):
        buffer.insert({**good, **change})
    assert len(buffer) == buffer.inserted == 1


def test_a_history_that_does_not_go_on_is_refused_whole():
    rows = transitions([5], lambda e, t: stack(e, t, 2))
    rows[3]["next_observations"] = stack(9, 9, 2)
    buffer = FrameReplayBuffer(10, history=2, stacked=True)
    with pytest.raises(SchemaMismatch, match="one later"):
        put(buffer, chunk(rows))
    assert len(buffer) == 0
    with pytest.raises(SchemaMismatch, match="one later"):
        buffer.batch_insert(rows)
    assert len(buffer) == 4
    with pytest.raises(SchemaMismatch, match="history=3"):
        FrameReplayBuffer(10, history=3, stacked=True).insert(rows[0])
    with pytest.raises(ValueError, match="history"):
        FrameReplayBuffer(10, history=0)


def test_one_row_of_a_sample():
    buffer = FrameReplayBuffer(10)
    rows = transitions([5], lambda e, t: observation(t, e))
    buffer.batch_insert(rows)
    assert same(row(buffer.sample(1, indx=np.array([3])), 0), rows[3])


def test_a_pool_that_grows_shows_its_frames_all_the_time(monkeypatch):
    """Samplers take no lock: they must never see the new arrays before the frames are in them."""
    pool = FramePool({"side": ((2,), np.dtype(np.uint8))}, 4, None)
    slots = pool.take(4)
    pool.arrays["side"][slots] = 7
    allocate = FramePool._allocate

    def allocate_and_look(self, camera, shape, dtype):
        new = allocate(self, camera, shape, dtype)
        assert (pool.arrays[camera][slots] == 7).all()
        return new

    monkeypatch.setattr(FramePool, "_allocate", allocate_and_look)
    seen = []

    class Watched(FramePool):
        def __setattr__(self, name, value):
            if name == "arrays":
                seen.append(value["side"][slots].copy())
            super().__setattr__(name, value)

    pool.__class__ = Watched
    pool.take(1)
    assert len(seen) == 1 and (seen[0] == 7).all()


def by_turns(actors, pieces, rng):
    """Yield chunks of the actors' rows in any order, each with its actor's name."""
    left = {name: list(rows) for name, rows in actors.items()}
    while any(left.values()):
        name = rng.choice([name for name, rows in left.items() if rows])
        n = int(rng.choice(pieces))
        part, left[name] = left[name][:n], left[name][n:]
        arrived = chunk(part)
        arrived.meta = {"actor": str(name)}
        yield name, arrived


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    history=st.integers(1, 4),
    actors=st.integers(1, 4),
    lengths=LENGTHS,
    capacity=st.integers(30, 200),
    is_restored=st.booleans(),
)
def test_each_of_several_actors_has_histories_of_its_own(
    seed, history, actors, lengths, capacity, is_restored, tmp_path_factory
):
    rng = np.random.default_rng(seed)
    single, stacked = {}, {}
    for number in range(actors):
        # Episodes of all actors show frames of the same numbers: only the actor tells them apart.
        def at(e, t, a=number):
            return observation(t, 50 * a + e)

        def with_history(e, t, a=number):
            return stack(50 * a + e, t, history)

        name = f"actor {number}"
        single[name] = transitions(lengths, at)
        stacked[name] = iter(transitions(lengths, with_history if history > 1 else at))
    # So large that no actor's newest row is overwritten before its next one comes.
    buffer = FrameReplayBuffer(capacity + sum(lengths) * actors // 2, history=history)
    naive = ReplayBuffer(buffer.capacity)
    chunks = list(by_turns(single, [1, 2, 7], rng))
    for at, (name, arrived) in enumerate(chunks):
        if is_restored and at == len(chunks) // 2:
            buffer = restored(buffer, history, tmp_path_factory.mktemp("snapshot"))
        put(buffer, arrived)
        naive.batch_insert([next(stacked[name]) for _ in range(arrived.n)])
    begin, end = buffer._head.rows()
    missed = [name for name in single if lost_track(chunks, name, buffer.capacity)]
    if not missed:
        found = buffer.sample(end - begin, indx=np.arange(begin, end))
        assert same(found, naive.sample(end - begin, indx=np.arange(begin, end)))
    held = buffer._windows._pool._holds
    shown = np.bincount(buffer._windows.take(np.arange(begin, end)).ravel(), minlength=len(held))
    assert (held == shown).all() and buffer._windows._pool.used == np.count_nonzero(held)


def lost_track(chunks, name, capacity):
    """Whether an actor's newest row was overwritten before its next one came."""
    row, newest = 0, None
    for other, arrived in chunks:
        if other == name and newest is not None and newest < row - capacity:
            return True
        row += arrived.n
        newest = row - 1 if other == name else newest
    return False


def restored(buffer, history, folder):
    Snapshots(folder, buffer).save()
    other = FrameReplayBuffer(buffer.capacity, history=history)
    Snapshots(folder, other).restore()
    return other


def test_an_actor_whose_frames_are_gone_begins_anew():
    rows = transitions([12], lambda e, t: observation(t, 0))
    late = transitions([12], lambda e, t: observation(t, 7))
    buffer = FrameReplayBuffer(5, history=3)
    for name, part in (("a", rows[:2]), ("b", late[:6]), ("a", rows[2:3])):
        arrived = chunk(part)
        arrived.meta = {"actor": name}
        put(buffer, arrived)
    newest = buffer.sample(1, indx=np.array([8]))["observations"]["wrist"][0]
    assert (newest == rows[2]["observations"]["wrist"]).all()


def test_many_actors_that_come_and_go_are_forgotten():
    buffer = FrameReplayBuffer(10, history=2)
    for number in range(500):
        arrived = chunk(transitions([1], lambda e, t, a=number: observation(t, a)))
        arrived.meta = {"actor": str(number)}
        put(buffer, arrived)
    assert len(buffer._windows._newest) <= 65
