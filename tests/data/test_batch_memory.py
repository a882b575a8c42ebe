"""Large batches come into memory that is used again, but never while anything refers to it."""

import gc
import itertools
import threading

import numpy as np
import pytest

from agentlace import native
from agentlace.data import FrameReplayBuffer, ReplayBuffer
from agentlace.data.columns import leaves_of
from agentlace.data.mixture import Mixture
from agentlace.data.ring import LEAST_BYTES, batch_memory, take_all, take_rows
from agentlace.data.sampler import SequenceSampler
from agentlace.data.trajectory_buffer import DataShape
from agentlace.data.trajectory_data_store import TrajectoryBufferDataStore

ROWS, BATCH = 64, 48
FRAME = (128, 128, 3)  # of which a batch has more than LEAST_BYTES


@pytest.fixture(autouse=True, params=["compiled", "python"])
def copied_by(request, monkeypatch):
    batch_memory.reset()  # nothing is kept of other tests
    if request.param == "python":
        monkeypatch.setattr(native, "gather", None)
    elif native.gather is None:
        pytest.skip("nothing is compiled here")
    return request.param


def frames(n):
    """Return frames in which every byte tells the row."""
    return np.repeat(np.arange(n, dtype=np.uint8), np.prod(FRAME)).reshape(n, *FRAME)


def columns(first=0):
    shown = frames(ROWS + 1) + np.uint8(first % 256)
    return {
        "observations": {"wrist": shown[:-1]},
        "next_observations": {"wrist": shown[1:]},
        "n": np.arange(first, first + ROWS),
    }


def replay_buffer(kind=ReplayBuffer):
    buffer = kind(ROWS, seed=0)
    buffer.insert_columns(columns(), ROWS)
    return buffer, lambda: buffer.sample(BATCH)


def frame_buffer():
    return replay_buffer(FrameReplayBuffer)


def mixture():
    stores = {"a": replay_buffer()[0], "b": replay_buffer()[0]}
    both = Mixture({"a": 0.5, "b": 0.5}, stores)
    return both, lambda: both.sample(BATCH)


def trajectory_store():
    shapes = [DataShape("wrist", FRAME, np.uint8), DataShape("n", (), np.int64)]
    store = TrajectoryBufferDataStore(ROWS, shapes, seed=0)
    store.register_sample_config("all", {key: SequenceSampler() for key in ("wrist", "n")})
    for n, frame in enumerate(frames(ROWS)):
        store.insert({"wrist": frame, "n": n})
    store.end_trajectory()

    def sample():
        data, _ = store.sample("all", BATCH)
        return {"observations": {"wrist": data["wrist"]}, "n": data["n"]}

    return store, sample


SAMPLED = pytest.mark.parametrize(
    "make", [replay_buffer, frame_buffer, mixture, trajectory_store], ids=lambda make: make.__name__
)


def is_whole(batch):
    n = batch["n"].reshape(-1)
    shown = {"observations": n, "next_observations": n + 1}
    return all(
        (np.asarray(frame) == number % 256).all()
        for part, numbers in shown.items()
        if part in batch
        for frame, number in zip(batch[part]["wrist"], numbers, strict=True)
    )


def addresses(batch):
    leaves = [leaf for _, leaf in leaves_of(batch) if leaf.nbytes >= LEAST_BYTES]
    return {leaf.__array_interface__["data"][0] for leaf in leaves}


@SAMPLED
def test_batches_that_are_kept_never_share_memory(make):
    _, sample = make()
    held = [sample() for _ in range(6)]
    for one, other in itertools.combinations(held, 2):
        assert not np.may_share_memory(one["observations"]["wrist"], other["observations"]["wrist"])
        assert not addresses(one) & addresses(other)
    assert all(map(is_whole, held))


@SAMPLED
def test_memory_of_a_dropped_batch_is_used_again(make):
    _, sample = make()
    batch = sample()
    assert all(leaf.flags.writeable and leaf.flags.c_contiguous for _, leaf in leaves_of(batch))
    found = addresses(batch)
    assert found
    del batch
    gc.collect()
    seen = set()
    held = [sample() for _ in range(4)]
    for batch in held:
        seen |= addresses(batch)
    assert seen & found
    assert all(map(is_whole, held))


@SAMPLED
def test_a_part_of_a_batch_keeps_it(make):
    """Whatever is left of a batch is the same after many others, which are written to."""
    _, sample = make()
    left = []
    for number in range(12):
        batch = sample()
        wrist, n = batch["observations"]["wrist"], batch["n"].reshape(-1)
        part = [wrist[5:9], wrist[::-3], wrist[..., 1].T, memoryview(wrist)][number % 4]
        left.append((part, np.array(part)))
        assert (wrist.reshape(BATCH, -1)[:, 0] == n).all()
        del batch, wrist
        for _ in range(3):
            sample()["observations"]["wrist"][...] = 255
    assert all(np.array_equal(part, before) for part, before in left)


@SAMPLED
def test_several_threads_sample_whole_batches(make):
    _, sample = make()
    wrong = []

    def check():
        held = []
        for _ in range(15):
            held.append(sample())
            wrong.extend(batch for batch in held if not is_whole(batch))
            del held[:-2]

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", [ReplayBuffer, FrameReplayBuffer])
def test_no_batch_is_torn_while_rows_are_overwritten(kind):
    buffer, sample = replay_buffer(kind)
    stop = threading.Event()

    def insert():
        for first in itertools.count(ROWS, ROWS):
            if stop.is_set():
                return
            buffer.insert_columns(columns(first), ROWS)

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        batches = [sample() for _ in range(3)]
        for _ in range(60):
            batches = [*batches[1:], sample()]
            assert all(map(is_whole, batches))
    finally:
        stop.set()
        thread.join()
    assert buffer.inserted > ROWS


def test_arrays_on_a_device_are_not_written_over():
    """JAX may make its array of a batch's memory, or copy it after device_put has returned."""
    jax = pytest.importorskip("jax")
    buffer, _ = replay_buffer()
    held = []
    for _ in range(20):
        held.append(jax.device_put(buffer.sample(BATCH)))
        held.append(jax.tree.map(jax.numpy.asarray, buffer.sample(BATCH)))
        held.append({**buffer.sample(BATCH)})
        del held[:-9]
        buffer.sample(BATCH)["observations"]["wrist"][...] = 255
        assert all(is_whole(jax.tree.map(np.asarray, batch)) for batch in held)


def test_prefetched_batches_are_whole():
    buffer, _ = replay_buffer()
    held = []
    with buffer.get_iterator(sample_args={"batch_size": BATCH}, queue_size=3) as batches:
        for batch in itertools.islice(batches, 20):
            held.append(batch)
            del held[:-3]
            assert all(map(is_whole, held))


def test_packed_frames_are_whole_and_not_shared():
    shown = frames(ROWS + 2)
    stacked = np.stack([shown[:-1], shown[1:]], axis=1)
    buffer = ReplayBuffer(ROWS, seed=0)
    packed = {"observations": stacked[:-1], "next_observations": stacked[1:], "n": np.arange(ROWS)}
    buffer.insert_columns(packed, ROWS)
    held = []
    for _ in range(8):
        held.append(buffer.sample(BATCH, pack_obs_and_next_obs=True))
        del held[:-3]
        for batch in held:
            numbers = batch["n"][:, None] + np.arange(3)
            assert (batch["observations"] == numbers[..., None, None, None]).all()


@pytest.mark.parametrize("dtype", ["u1", ">f4", "?", "M8[ns]", "S7", [("a", "i2"), ("b", "f8")]])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
@pytest.mark.parametrize("positions_shape", [(0,), (7,), (200_000,), (50_000, 4), (400_000, 3)])
def test_rows_are_those_that_indexing_returns(dtype, shape, positions_shape):
    rng = np.random.default_rng(0)
    storage = np.zeros((90, *shape), dtype)
    storage.reshape(-1).view(np.uint8)[...] = rng.integers(0, 2, storage.nbytes)
    for kind in (np.int32, np.int64):
        positions = rng.integers(0, 90, positions_shape).astype(kind)
        if positions.size * storage.nbytes / 90 > 16 * LEAST_BYTES:
            positions = positions[:1000]
        rows, expected = take_rows(storage, positions), storage[positions]
        assert (rows.dtype, rows.shape) == (expected.dtype, expected.shape)
        assert rows.tobytes() == expected.tobytes()
        assert rows.flags.writeable and not np.may_share_memory(rows, storage)


@pytest.mark.parametrize("view", ["sliced", "transposed", "reversed", "broadcast"])
def test_rows_of_arrays_with_other_strides(view):
    base = np.random.default_rng(0).integers(0, 255, (60, 40, 1000)).astype(np.uint8)
    storage = {
        "sliced": base[::2, ::3, 1:],
        "transposed": base.transpose(1, 2, 0),
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[0], base.shape),
    }[view]
    positions = np.random.default_rng(1).integers(0, len(storage), 400)
    assert np.array_equal(take_rows(storage, positions), storage[positions])


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.uint32])
def test_rows_that_are_large_each(n, kind):
    storage = np.random.default_rng(0).integers(0, 255, (5, 2 << 20)).astype(np.uint8)
    positions = np.random.default_rng(1).integers(0, 5, n).astype(kind)
    assert np.array_equal(take_rows(storage, positions), storage[positions])


@pytest.mark.parametrize("n", [3, 4000])
def test_positions_outside_are_as_for_indexing(n):
    storage = np.random.default_rng(0).integers(0, 255, (50, 1000)).astype(np.uint8)
    positions = np.random.default_rng(1).integers(-50, 50, n)
    assert np.array_equal(take_rows(storage, positions), storage[positions])
    for wrong in (50, -51):
        positions[n // 2] = wrong
        with pytest.raises(IndexError):
            take_rows(storage, positions)


@pytest.mark.parametrize("leaves", [1, 2, native.MAX_LEAVES + 1])
def test_a_tree_of_rows_is_that_of_each_array(leaves):
    rng = np.random.default_rng(0)
    wide = {str(n): rng.integers(0, 255, (20, 20_000)).astype(np.uint8) for n in range(leaves)}
    tree = {"wide": wide, "narrow": (np.arange(20.0), np.arange(60).reshape(20, 3))}
    positions = rng.integers(0, 20, 60)
    taken = take_all(tree, positions)
    for (path, rows), (other, storage) in zip(leaves_of(taken), leaves_of(tree), strict=True):
        assert path == other and np.array_equal(rows, storage[positions])
    assert isinstance(taken["narrow"], tuple)
