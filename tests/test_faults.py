"""Nothing is lost or doubled when a node or the broker dies: real processes, real kills."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

NODES = Path(__file__).with_name("fault_nodes.py")
COUNT = 3000
DEADLINE_S = 60


class Node:
    """A program whose output is read while it runs."""

    def __init__(self, url, *args):
        self.process = subprocess.Popen(
            [sys.executable, str(NODES), *map(str, args)],
            env={**os.environ, "AGENTLACE_BROKER": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def says(self, text, timeout_s=DEADLINE_S):
        with self._changed:
            return self._changed.wait_for(
                lambda: any(text in line for line in self.lines), timeout_s
            )

    def kill(self):
        self.process.kill()
        self.end()

    def end(self):
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        self._reader.join()
        self.process.stdout.close()
        return self.process.returncode


@pytest.fixture
def start():
    nodes = []

    def start(url, *args):
        nodes.append(Node(url, *args))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.kill()


def wait_for_rows(path, count):
    """Wait until a learner has written so many rows, and return them per actor."""
    deadline = time.monotonic() + DEADLINE_S
    tick = threading.Event()
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "rows are missing"
        tick.wait(0.05)
    tick.wait(0.3)  # long enough for a row that comes twice to be seen
    rows = {}
    for line in path.read_text().splitlines():
        actor, number = map(int, line.split())
        rows.setdefault(actor, []).append(number)
    return rows


EXACTLY = list(range(COUNT))


def test_two_actors_on_one_store(start, broker_url, tmp_path):
    learner = start(broker_url, "learner", tmp_path / "rows")
    assert learner.says("learning")
    actors = [start(broker_url, "actor", number, COUNT) for number in range(2)]
    assert all(actor.says("all sent") for actor in actors)
    assert wait_for_rows(tmp_path / "rows", 2 * COUNT) == {0: EXACTLY, 1: EXACTLY}
    assert [actor.end() for actor in actors] == [0, 0]
    assert learner.end() == 0


def test_killed_learner_refills_from_the_streams(start, broker_url, tmp_path):
    first = start(broker_url, "learner", tmp_path / "first")
    assert first.says("learning")
    actors = [start(broker_url, "actor", number, COUNT) for number in range(2)]
    wait_for_rows(tmp_path / "first", COUNT)
    first.kill()
    second = start(broker_url, "learner", tmp_path / "second")
    assert second.says("learning"), "".join(second.lines)
    assert all(actor.says("all sent") for actor in actors)
    assert wait_for_rows(tmp_path / "second", 2 * COUNT) == {0: EXACTLY, 1: EXACTLY}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_broker_restarted_on_its_directory(start, tmp_path, how):
    settings = Settings(port=free_port(), directory=str(tmp_path / "data"))
    url = f"redis://127.0.0.1:{settings.port}"
    broker = EmbeddedBroker(settings).start()
    try:
        learner = start(url, "learner", tmp_path / "rows")
        assert learner.says("learning")
        actor = start(url, "actor", 0, COUNT)
        wait_for_rows(tmp_path / "rows", COUNT // 10)
        os.kill(broker.pid, how)
        broker.wait(DEADLINE_S)
        assert learner.says("waits for the broker")
        assert actor.says("waits for the broker") or actor.says("no broker at")
        broker.stop()
        broker = EmbeddedBroker(settings).start()
        assert actor.says("all sent"), "".join(actor.lines)
        assert wait_for_rows(tmp_path / "rows", COUNT) == {0: EXACTLY}
        assert actor.end() == 0
        assert learner.end() == 0
    finally:
        broker.stop()
