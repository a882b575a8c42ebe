"""A writer that is killed leaves a readable dataset, which goes on where its cursor is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from agentlace.rlds.reader import DatasetReader
from tests.rlds.support import assert_same_episode, episode

EPISODES = 6
SHARD_NBYTES = 14_000
"""Three episodes are more, two are less: the first joined shard is large, and later only linked."""


class KillServer:
    def __init__(self):
        command = [sys.executable, "-m", "tests.rlds.kill_server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, data_dir, kill_at=0, how="before", **job):
        """Let a process write; returns whether it was killed, and its steps if it was not."""
        data_dir.mkdir(exist_ok=True)
        job = {"episodes": EPISODES, "per_commit": 1, "waits": True, **job}
        job = {"shard_nbytes": SHARD_NBYTES, "notes": f"{data_dir}/notes", **job}
        job = {"kill_after_s": 0, **job}
        job = {"data_dir": str(data_dir), "kill_at": kill_at, "how": how, **job}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["status"] in (0, signal.SIGKILL, signal.SIGALRM), answer
        return answer["status"] != 0, answer["calls"]

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        self._process.stdout.close()


@pytest.fixture
def folder():
    """A folder in memory: a kill loses nothing that was written, so that no disk is needed."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server():
    server = KillServer()
    yield server
    server.close()


def committed(data_dir):
    """The number of episodes of whose commit the writer knew."""
    path = data_dir / "notes"
    return int((path.read_text().split() or [0])[-1]) if path.exists() else 0


def check(data_dir, whole=False, episodes=EPISODES):
    """Compare all that is there with what was written; returns the number of episodes."""
    path = data_dir / "killed" / "1.0.0"
    if not (path / "dataset_info.json").exists():
        assert committed(data_dir) == 0 and not whole
        return 0
    reader = DatasetReader(path)
    found = list(reader.episodes())
    for number, one in enumerate(found):
        assert_same_episode(one, episode(number))
    assert len(found) == len(reader) == reader.manifest.cursor["next"]
    assert committed(data_dir) <= len(found) <= episodes
    assert len(found) == episodes or not whole
    return len(found)


def steps_of_a_whole_run(server, data_dir):
    killed, steps = server.run(data_dir)
    assert not killed and check(data_dir, whole=True)
    return steps


def kill_and_go_on(server, data_dir, at, how, copies):
    """Kill a run at one step, keep a copy of what is there, and let another go on."""
    killed, _ = server.run(data_dir, at, how)
    assert killed
    n = check(data_dir)
    if n:
        shutil.copytree(data_dir, copies / data_dir.name)
    killed, _ = server.run(data_dir)
    assert not killed
    check(data_dir, whole=True)
    return n


@pytest.mark.timeout(400)
def test_a_kill_at_each_step_loses_and_doubles_nothing(server, folder):
    copies = folder / "copies"
    steps = steps_of_a_whole_run(server, folder / "whole")
    assert {"replace", "fsync", "link", "mkdir", "rmtree"} <= set(steps)
    counts = [
        # After one step is before the next.
        kill_and_go_on(server, folder / f"before-{at}", at, "before", copies)
        for at in range(1, len(steps) + 1)
    ]
    counts += [
        kill_and_go_on(server, folder / f"torn-{at}", at, "torn", copies)
        for at, name in enumerate(steps, 1)
        if name == "fsync of a file"
    ]
    assert set(counts) == set(range(EPISODES + 1))
    check_with_tensorflow(sorted(copies.iterdir()), counts)


def check_with_tensorflow(copies, counts):
    """Compare every pixel that TensorFlow reads from what the kills left."""
    paths = [str(path / "killed" / "1.0.0") for path in copies]
    command = [sys.executable, "-m", "tests.rlds.tensorflow_reader", "killed", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = {int(number): n for number, n in json.loads(done.stdout).items()}
    assert found == {number: sum(count > number for count in counts) for number in range(EPISODES)}


def test_kills_in_runs_that_go_on_after_kills(server, folder):
    steps = len(steps_of_a_whole_run(server, folder / "whole"))
    rng = np.random.default_rng(0)
    for run in range(5):
        data_dir = folder / str(run)
        while server.run(data_dir, int(rng.integers(1, steps // 2)))[0]:
            check(data_dir)
        check(data_dir, whole=True)


def test_kills_at_any_time_while_shards_are_joined_in_the_background(server, folder):
    rng = np.random.default_rng(1)
    job = {"waits": False, "per_commit": 2, "episodes": 24}
    kills = 0
    for run in range(5):
        data_dir, seconds = folder / str(run), 0.02
        while server.run(data_dir, kill_after_s=rng.uniform(0.001, seconds), **job)[0]:
            check(data_dir, episodes=24)
            kills, seconds = kills + 1, seconds * 1.3
        check(data_dir, whole=True, episodes=24)
    assert kills > 5
