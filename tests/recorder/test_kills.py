"""Each episode is in the dataset exactly once, step by step, whoever is killed meanwhile."""

import os
import random
import signal
import threading
from collections import Counter

import numpy as np
import pytest

from agentlace import TrainerServer
from agentlace.data import QueuedDataStore
from agentlace.rlds.reader import DatasetReader
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port
from tests.services.support import Program, wait_until

from .playing import CONFIG, STORE, how_it_ends, transitions

NAME = "lab"
LONG_S = 90.0
ACTOR = "from tests.recorder.playing import main; main()"
COMMAND = """
import sys
from agentlace.cli import main
try:
    sys.exit(main())
finally:
    assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""
PER_EPISODE_S = 0.03


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path) as lab:
        yield lab


class Lab:
    """A broker that keeps its data, a trainer, actors, and a recorder: most of them killable."""

    def __init__(self, folder):
        self._settings = Settings(port=free_port(), directory=str(folder / "broker"))
        self.url = f"redis://127.0.0.1:{self._settings.port}"
        self.data_dir = folder / "data"
        self.directory = self.data_dir / NAME / "1.0.0"
        self.programs = []

    def __enter__(self):
        self.broker = EmbeddedBroker(self._settings).start()
        self.trainer = TrainerServer(CONFIG, broker=self.url)
        self.trainer.register_data_store(STORE, QueuedDataStore(1_000_000))
        self.trainer.start(threaded=True)
        return self

    def __exit__(self, *_):
        for program in self.programs:
            program.__exit__()
        self.trainer.stop()
        self.broker.stop()

    def run(self, source, *args):
        self.programs.append(Program(source, *args, broker=self.url))
        return self.programs[-1]

    def actors(self, count):
        found = [self.run(ACTOR, number, PER_EPISODE_S) for number in range(count)]
        for actor in found:
            actor.line("playing", LONG_S)
        return found

    def recorder(self, *options):
        options = ("--commit-every", 0.02, "--abort-after", 1000, *options)
        where = ("--store", STORE, "--name", NAME, "--data-dir", self.data_dir)
        port = ("--trainer-port", CONFIG.port_number)
        return self.run(COMMAND, "rlds", "export", *where, *port, *options)

    def kill_broker(self):
        os.kill(self.broker.pid, signal.SIGKILL)
        self.broker.wait(LONG_S)
        self.broker.stop()
        self.broker = EmbeddedBroker(self._settings).start()

    def stop_playing(self, actors):
        """Return how many episodes each actor has played."""
        for actor in actors:
            actor.tell("enough")
        words = [actor.line("played", LONG_S).split() for actor in actors]
        assert [word[3] for word in words] == ["0"] * len(actors)
        return [int(word[1]) for word in words]

    def record_the_rest(self):
        """Return what the last recorder said."""
        recorder = self.recorder("--once")
        assert recorder.wait(LONG_S) == 0, "\n".join(recorder.lines)
        return recorder.lines

    def episodes(self):
        return list(DatasetReader(self.directory).episodes())


def assert_exactly(found, played):
    """Compare a dataset with what its actors have played."""
    names = [tuple(int(n) for n in e.steps[0]["number"][:2]) for e in found]
    expected = {(actor, n) for actor, count in enumerate(played) for n in range(count)}
    doubled = [name for name, count in Counter(names).items() if count > 1]
    assert not doubled, doubled
    assert set(names) == expected
    for (actor, number), episode in zip(names, found, strict=True):
        rows, steps = transitions(actor, number), episode.steps
        assert len(steps) == len(rows) + 1, (actor, number)
        for row, step, after in zip(rows, steps, steps[1:], strict=False):
            same(row["observations"], step["observation"])
            same(row["next_observations"], after["observation"])
            same(row["actions"], step["action"])
            same(row["number"], step["number"])
            assert step["reward"] == row["rewards"] and step["discount"] == row["masks"]
        how = how_it_ends(actor, number)
        if actor % 2:  # nothing tells an aborted one from a truncated one
            how = "terminated" if how == "terminated" else "truncated"
        assert episode.ending == how, (actor, number)
    for actor in range(len(played)):
        in_order = [number for a, number in names if a == actor]
        assert in_order == sorted(in_order)


def same(expected, found):
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key in expected:
            same(expected[key], found[key])
    else:
        assert np.array_equal(expected, found)


@pytest.mark.timeout(240)
def test_a_recorder_that_is_killed_again_and_again(lab):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng, pause = random.Random(seed), threading.Event()
    actors = lab.actors(2)
    for _ in range(4):
        recorder = lab.recorder()
        recorder.line("recording", LONG_S)
        pause.wait(rng.uniform(0.05, 0.8))
        recorder.kill()
    played = lab.stop_playing(actors)
    lab.record_the_rest()
    assert_exactly(lab.episodes(), played)


@pytest.mark.timeout(240)
def test_a_broker_that_is_killed(lab):
    """With its log written every second: what it forgot is sent again, and not doubled."""
    actors, recorder = lab.actors(2), lab.recorder()
    recorder.line("recording", LONG_S)
    for goal in (20, 60):
        wait_until(lambda n=goal: committed(lab) >= n, LONG_S, f"{goal} episodes")
        lab.kill_broker()
    wait_until(lambda: committed(lab) >= 100, LONG_S, "episodes after the kills")
    recorder.kill()
    played = lab.stop_playing(actors)
    lab.record_the_rest()
    assert_exactly(lab.episodes(), played)


def committed(lab):
    try:
        return len(DatasetReader(lab.directory))
    except FileNotFoundError:
        return 0
