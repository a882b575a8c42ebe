"""A dataset that is replayed into a trainer, as if an actor were recording it."""

import itertools
import threading

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer, UnknownRequest
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore, ReplayBuffer
from agentlace.recorder import Recorder
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.writer import DatasetWriter
from agentlace.trainer.replay import BATCH_MAX, Pace, Replay
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.keys import ServiceKeys

from ..data.rlds_episodes import ENDINGS, check_transition, episodes, expected
from .support import InThread, assert_same, wait_until

CONFIG = TrainerConfig(5601, 5602, request_types=["stats"])
LENGTHS = (5, 1, 3, 8)


class Clock:
    """Time that passes only while somebody waits, and stops when it is told."""

    def __init__(self, late=()):
        self.now, self.late, self.stopped = 100.0, list(late), False

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds + (self.late.pop(0) if self.late else 0)

    def is_set(self):
        return self.stopped


def test_what_is_late_is_caught_up_with_and_delays_do_not_add_up():
    clock = Clock(late=[0, 0, 0.95])
    pace = Pace(10, clock, clock)
    times = []
    while sum(taken for _, taken in times) < 20:
        taken = pace.take(20 - sum(taken for _, taken in times))
        times.append((round(clock.now - 100, 6), taken))
    assert times[:3] == [(0, 1), (0.1, 1), (1.15, 10)]
    assert times[3:] == [(round(1.2 + i / 10, 6), 1) for i in range(8)]
    assert pace.behind_s == pytest.approx(0.95)
    clock.stopped = True
    assert pace.take(9) == 0


def test_without_a_rate_everything_is_due():
    clock = Clock()
    pace = Pace(None, clock, clock)
    assert [pace.take(7), pace.take(3)] == [7, 3] and clock.now == 100


@pytest.fixture
def serve(running, broker_url):
    def serve(name="replayed"):
        server = TrainerServer(CONFIG, broker=broker_url)
        server.register_data_store(name, ReplayBuffer(1000))
        server.start(threaded=True)
        running_server = running(server)
        return running_server.data_store(name)

    return serve


@pytest.fixture
def replay(running, broker_url):
    def replay(rate_hz=None, stop=None, name="replayed", with_extras=False):
        queue = QueuedDataStore(BATCH_MAX)
        stores = {name: queue}
        client = running(
            TrainerClient(
                "replay", "", CONFIG, data_stores=stores, timeout_ms=9e3, broker=broker_url
            )
        )
        return Replay(client, name, queue, rate_hz, stop or threading.Event(), with_extras)

    return replay


@pytest.mark.parametrize("rate_hz", [None, 200])
def test_the_trainer_gets_what_an_actor_would_send(serve, replay, rate_hz):
    store = serve()
    replayed = replay(rate_hz).run(episodes(LENGTHS))
    rows = store.get_latest_data(-1)
    for row, (e, t, is_last, mask) in zip(rows, expected(LENGTHS), strict=True):
        check_transition(row, e, t, mask)
        assert row["dones"] == is_last
    assert set(rows[0]) == {
        *("observations", "next_observations", "actions", "rewards", "masks", "dones")
    }
    assert (replayed.episodes, replayed.transitions) == (len(LENGTHS), sum(LENGTHS))
    assert replayed.confirmed and replayed.rate_hz > 0


def test_episodes_begin_and_end_with_marks_and_extras_go_along(serve, replay, broker_url):
    serve()
    url, found = BrokerURL.parse(broker_url), []

    def apply(actor, chunk, last):
        found.extend(row["language_instruction"] for row in chunk.rows())

    def on_mark(actor, mark, entry):
        found.append((mark.what, mark.how, mark.metadata.get("robot")))

    keys = ServiceKeys(url.namespace, "trainer", CONFIG.port_number)
    recorder = Consumer(Broker(url), keys, "replayed", apply, "recorder:x", {}, on_mark=on_mark)
    recorder.start()
    try:
        replay(with_extras=True).run(episodes(LENGTHS))
        wait_until(lambda: len(found) == sum(LENGTHS) + 2 * len(LENGTHS))
    finally:
        recorder.stop()
    wanted = []
    for e, n in enumerate(LENGTHS):
        wanted += [("begin", None, f"arm {e}"), *[f"lift cube {e}"] * n]
        wanted += [("end", ENDINGS[e % 3], None)]
    assert [str(w) if isinstance(w, np.ndarray) else w for w in found] == wanted


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TFDS' own
def test_what_is_replayed_and_recorded_is_the_same_dataset(serve, replay, broker_url, tmp_path):
    """Every ending, pixel and text: from a dataset through a stream into another one."""
    pytest.importorskip("tensorflow_datasets")
    with DatasetWriter(tmp_path, "first") as writer:
        for one in episodes(LENGTHS):
            writer.append(one)
        writer.commit()
    serve()
    first = DatasetReader(writer.directory)
    args = {"port_number": CONFIG.port_number, "broker": broker_url}
    with Recorder(["replayed"], tmp_path, "second", **args) as recorder:
        recording = InThread(recorder.run)
        assert replay(with_extras=True).run(first.episodes()).confirmed
        wait_until(lambda: recorder.status().episodes == len(LENGTHS))
        recorder.interrupt()
        recording.result()
    second = DatasetReader(recorder.directory).episodes()
    for found, wanted in zip(second, first.episodes(), strict=True):
        assert found.ending == wanted.ending
        assert found.metadata["robot"] == wanted.metadata["robot"]
        for step, other in zip(found.steps, wanted.steps, strict=True):
            assert_same(step, other)


def test_a_stop_ends_the_episode_at_hand(serve, replay):
    store, stop = serve(), threading.Event()
    replaying = InThread(lambda: replay(50, stop).run(itertools.cycle(episodes(LENGTHS))))
    wait_until(lambda: len(store) > sum(LENGTHS))
    stop.set()
    replayed = replaying.result()
    assert replayed.confirmed and store.inserted == replayed.transitions
    assert len(LENGTHS) <= replayed.episodes


def test_a_store_that_the_trainer_lacks(serve, replay):
    serve("other")
    with pytest.raises(UnknownRequest, match="no store 'replayed', but"):
        replay().run(episodes(LENGTHS))
