"""How often each path copies an array's bytes in our processes: what docs/performance.md states.

A count is no timing: it is told by whose memory a buffer is, and by the peak of traced memory.
"""

import contextlib
import tracemalloc

import numpy as np
import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    InferenceClient,
    InferenceServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    native,
)
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.transport import pool, resp

from .support import wait_until

TIMEOUT_MS = 20_000
LARGE = 1 << 20
SMALL = 1 << 10
SLACK_BYTES = 100 << 10
"""Headers, buffers for small replies, and what the heartbeats do meanwhile."""


class Wire:
    """What was written to sockets, and the memory that was received into."""

    def __init__(self, monkeypatch):
        self.written, self.received = [], []
        write, memory = resp.write, pool.memory

        def keep_written(sock, buffers):
            self.written.append([np.frombuffer(buffer, np.uint8) for buffer in buffers if buffer])
            write(sock, buffers)

        def keep_received(size):
            self.received.append(memory(size))
            return self.received[-1]

        def keep_traded(fd, before, parts, nbytes, after, *rest):
            buffers = [before, *parts, after]
            self.written.append([np.frombuffer(buffer, np.uint8) for buffer in buffers if buffer])
            return trade(fd, before, parts, nbytes, after, *rest)

        trade = native.trade
        if trade is not None:
            monkeypatch.setattr(native, "trade", keep_traded)
        monkeypatch.setattr(resp, "write", keep_written)
        monkeypatch.setattr(pool, "memory", keep_received)

    def clear(self):
        self.written.clear()
        self.received.clear()

    def copied_on_the_way_out(self, *arrays):
        """Return how many bytes were written that are not the arrays' own memory."""
        buffers = [buffer for write in self.written for buffer in write]
        own = [b for b in buffers if any(np.may_share_memory(b, array) for array in arrays)]
        assert sum(b.nbytes for b in own) == sum(array.nbytes for array in arrays)
        return sum(b.nbytes for b in buffers) - sum(b.nbytes for b in own)

    def received_in_place(self, array):
        return any(np.may_share_memory(array, memory) for memory in self.received)


@pytest.fixture(params=["compiled", "pure"])
def way(request, monkeypatch):
    """What is compiled copies no more than what takes its place."""
    if request.param == "pure":
        for name in ("frame", "opened", "trade"):
            monkeypatch.setattr(native, name, None)
    elif native.trade is None:
        pytest.skip("there is no compiled module here: no compiler, or AGENTLACE_PURE=1")
    return request.param


@pytest.fixture
def wire(way, monkeypatch):
    return Wire(monkeypatch)


@contextlib.contextmanager
def peak_below(nbytes):
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < nbytes


@pytest.fixture
def inference(running, broker_url):
    got = []
    server = running(InferenceServer(1, broker=broker_url))
    server.register_interface("take", lambda payload: got.append(payload["image"]))
    server.register_interface("echo", lambda payload: payload)
    server.start(threaded=True)
    client = running(InferenceClient("localhost", 1, TIMEOUT_MS, strict=True, broker=broker_url))
    return client, got


def test_a_large_payload_is_copied_neither_out_nor_in(inference, wire):
    client, got = inference
    for _ in range(3):  # the long way, then the short one
        image = np.full(LARGE, 7, np.uint8)
        wire.clear()
        client.call("take", {"image": image})
        assert wire.copied_on_the_way_out(image) < SLACK_BYTES
        assert wire.received_in_place(got[-1])
        np.testing.assert_array_equal(got[-1], image)


def test_a_small_payload_is_joined_and_taken_once(way, inference):
    client, got = inference
    image = np.zeros(SMALL, np.uint8)
    structure = client._requests._encoders
    for _ in range(2):
        client.call("take", {"image": image})
    assert got[-1].base is not None  # a view of its frame, which came out of the read buffer once
    (encoder,) = [e for (what, name, _), e in structure.items() if name == "take"]
    large = np.zeros(12 << 10, np.uint8)
    encoder.encode((1, 1.0, bytes(16)), {"image": large})
    # The frame; in Python the leaf, the frame, and the frame with its checksum.
    with peak_below((1 if way == "compiled" else 3) * large.nbytes + 4096):
        encoder.encode((1, 1.0, bytes(16)), {"image": large})


def test_a_large_observation_is_received_into_its_own_memory(running, broker_url, wire):
    config = ActionConfig(1, [], ["image"])
    image = np.random.default_rng(0).integers(0, 255, LARGE, np.uint8)
    server = running(ActionServer(config, lambda keys: {"image": image}, None, broker=broker_url))
    server.start(threaded=True)
    client = running(
        ActionClient("localhost", config, timeout_ms=TIMEOUT_MS, strict=True, broker=broker_url)
    )
    for _ in range(2):
        wire.clear()
        found = client.obs()["image"]
        wait_until(lambda: wire.written)
        assert wire.copied_on_the_way_out(image) < SLACK_BYTES
        assert wire.received_in_place(found)
        np.testing.assert_array_equal(found, image)
    del found
    wire.clear()
    with peak_below(LARGE // 2):  # the memory of an observation that is gone is used again
        client.obs()


class Taking:
    """A store that keeps the chunks that it gets."""

    def __init__(self):
        self.chunks = []

    def insert(self, transition):
        raise AssertionError("columns were expected")

    def insert_chunk(self, chunk):
        self.chunks.append(chunk)


def image_rows(n):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (128, 128, 3), np.uint8) for _ in range(n + 1)]
    return [
        {"observations": frames[i], "next_observations": frames[i + 1], "rewards": float(i)}
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 8])
def test_images_of_transitions_are_copied_neither_out_nor_in(running, broker_url, wire, n):
    store, queue, rows = Taking(), QueuedDataStore(100), image_rows(n)
    server = running(TrainerServer(TrainerConfig(), broker=broker_url))
    server.register_data_store("replay", store)
    server.start(threaded=True)
    client = running(
        TrainerClient(
            "a", "localhost", TrainerConfig(), data_stores={"replay": queue}, broker=broker_url
        )
    )
    client.timeout_ms = TIMEOUT_MS
    for number in range(1, 4):
        wire.clear()
        queue.batch_insert(rows)
        assert client.update()
        wait_until(lambda number=number: len(store.chunks) == number)
        frames = {id(f): f for row in rows for f in (row["observations"], row["next_observations"])}
        assert len(frames) == n + 1  # a frame that two rows share is written once
        assert wire.copied_on_the_way_out(*frames.values()) < SLACK_BYTES
        columns = store.chunks[-1].columns
        assert wire.received_in_place(columns["observations"])
        assert wire.received_in_place(columns["next_observations"])
        if n > 1:
            assert np.may_share_memory(columns["observations"], columns["next_observations"])


def test_a_store_copies_a_chunk_once_into_its_ring():
    buffer = ReplayBuffer(64)
    columns = {"observations": np.zeros((16, LARGE // 16), np.uint8)}
    buffer.insert_columns(columns, 16)
    with peak_below(SLACK_BYTES):
        buffer.insert_columns(columns, 16)
    assert not np.may_share_memory(buffer.dataset["observations"], columns["observations"])


def test_a_sample_is_one_copy():
    buffer = ReplayBuffer(64, seed=0)
    buffer.insert_columns({"observations": np.zeros((64, LARGE // 64), np.uint8)}, 64)
    held = buffer.sample(64)  # else its memory is used again, and a second copy would not show
    with peak_below(LARGE + SLACK_BYTES):
        batch = buffer.sample(64)
    assert batch["observations"].nbytes == held["observations"].nbytes == LARGE


def test_a_network_is_copied_once_at_each_end(running, broker_url, wire):
    server = running(TrainerServer(TrainerConfig(), broker=broker_url))
    server.start(threaded=True)
    client = running(TrainerClient("a", "localhost", TrainerConfig(), broker=broker_url))
    got = []
    client.recv_network_callback(got.append)
    for number in range(1, 3):
        weights = {"w": np.full(LARGE, number, np.uint8), "v": np.full(LARGE, number, np.uint8)}
        wire.clear()
        server.publish_network(weights)
        snapshot = np.frombuffer(server._publisher._newest.data, np.uint8)
        assert not np.may_share_memory(snapshot, weights["w"])  # the one copy: it must not tear
        wait_until(lambda number=number: len(got) == number)
        buffers = [b for write in wire.written for b in write]
        own = sum(b.nbytes for b in buffers if np.may_share_memory(b, snapshot))
        assert own >= 2 * LARGE
        assert sum(b.nbytes for b in buffers) - own < SLACK_BYTES
        leaves = list(got[-1].values())
        assert not any(wire.received_in_place(leaf) for leaf in leaves)  # joined: one copy
        assert leaves[0].base is not None and leaves[1].base is not None
