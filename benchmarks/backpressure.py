"""Memory of actor, trainer and broker while a consumer stands still: the picture of the guarantees.

    python -m benchmarks.backpressure [PICTURE]

Real processes: an actor that produces as fast as it can, a trainer, in some scenarios a recorder,
and the broker. After a while the slow one is stopped (SIGSTOP), later it goes on.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore
from agentlace.errors import StoreFull
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.held import HELD_MAX_BYTES
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import Retention
from benchmarks.processes import ROOT, free_port

CONFIG = TrainerConfig(5555)
STORE = "env"
ROW_BYTES = 100_000
QUEUE_ROWS = 100
ROWS_PER_UPDATE = 10
RETENTION_BYTES = 32 << 20
BROKER_BYTES = 96 << 20
SAMPLE_EVERY_S = 0.05
START_TIMEOUT_S = 60.0
MIB = 1 << 20

ACTOR_BOUND_BYTES = HELD_MAX_BYTES + 2 * (QUEUE_ROWS + ROWS_PER_UPDATE) * ROW_BYTES
"""What an actor may hold beyond what it needs to run: the window that it may have to send again,
its queue, and a batch that waits."""


class Scenario(NamedTuple):
    """What stands still, and what is then to happen."""

    title: str
    slow: str
    when_full: str = "block"
    is_filled: bool = False


SCENARIOS = {
    "block": Scenario("the trainer stops reading, block", "trainer"),
    "drop_oldest": Scenario("the trainer stops reading, drop_oldest", "trainer", "drop_oldest"),
    "recorder": Scenario("a recorder stops reading, block", "recorder"),
    "maxmemory": Scenario("the trainer stops, and the broker is full", "trainer", is_filled=True),
}


def act():
    """Produce as fast as possible; report rows and drops, a line a second."""
    store = QueuedDataStore(QUEUE_ROWS)
    client = TrainerClient(STORE, "localhost", CONFIG, store, wait_for_server=True, timeout_ms=200)
    print("running", flush=True)
    count, next_report_s = 0, 0.0
    while True:
        for _ in range(ROWS_PER_UPDATE):
            store.insert({"n": count, "image": np.full(ROW_BYTES, count % 251, np.uint8)})
            count += 1
        client.update()
        if time.monotonic() > next_report_s:
            print("made", count, client.dropped, client.lost, client.last_error, flush=True)
            next_report_s = time.monotonic() + 0.2


def train(when_full):
    server = TrainerServer(CONFIG)
    store = QueuedDataStore(QUEUE_ROWS)
    server.register_data_store(STORE, store, Retention(RETENTION_BYTES, when_full))
    server.start(threaded=True)
    print("running", flush=True)
    sys.stdin.read()


def record():
    url = BrokerURL.resolve(None)
    keys = ServiceKeys(url.namespace, "trainer", CONFIG.port_number)
    consumer = Consumer(Broker(url), keys, STORE, lambda *_: None, "recorder:curve", {})
    consumer.start()
    print("running", flush=True)
    sys.stdin.read()


class Node:
    def __init__(self, stack, url, role, *args):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backpressure", role, *map(str, args)],
            env={**os.environ, "AGENTLACE_BROKER": url, "PYTHONPATH": path},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(self._end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: "running" in self.lines, f"{role} runs")

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def _end(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    @property
    def made(self):
        """Rows that the actor has made, as it last said."""
        told = [line for line in list(self.lines) if line.startswith("made")]
        return int(told[-1].split()[1]) if told else 0


def wait_until(condition, what, timeout_s=START_TIMEOUT_S):
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        never.wait(SAMPLE_EVERY_S)
    return value


class Run:
    """A running scenario. A context manager.

    Attributes:
        samples: (seconds since the start, {process: bytes of resident memory}).
        stopped: when the slow one stood still, in seconds since the start.
    """

    def __init__(self, scenario):
        self.scenario = scenario
        self.samples = []
        self.stopped = []
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()

    def __enter__(self):
        stack, scenario = self._stack, self.scenario
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        settings = Settings(port=free_port(), directory=directory, maxmemory=str(BROKER_BYTES))
        broker = stack.enter_context(EmbeddedBroker(settings))
        url = f"redis://127.0.0.1:{settings.port}"
        self.broker = Broker(BrokerURL.parse(url))
        self.nodes = {"trainer": Node(stack, url, "train", scenario.when_full)}
        if scenario.slow == "recorder":
            self.nodes["recorder"] = Node(stack, url, "record")
        self.actor = self.nodes["actor"] = Node(stack, url, "act")
        pids = {name: node.process.pid for name, node in self.nodes.items()} | {
            "broker": broker.pid
        }
        watched = {name: psutil.Process(pid) for name, pid in pids.items()}
        sampler = threading.Thread(target=self._sample, args=(watched,), daemon=True)
        stack.callback(sampler.join)
        stack.callback(self._stop.set)
        self.began_s = time.monotonic()
        sampler.start()
        return self

    def __exit__(self, *_):
        self._stack.close()

    @property
    def now_s(self):
        return time.monotonic() - self.began_s

    def _sample(self, watched):
        while not self._stop.wait(SAMPLE_EVERY_S):
            sizes = {name: process.memory_info().rss for name, process in watched.items()}
            self.samples.append((self.now_s, sizes))

    def most(self, name, since_s=0.0, until_s=float("inf")):
        """Return the most that a process held in some time, in bytes."""
        return max(sizes[name] for at, sizes in self.samples if since_s <= at <= until_s)

    def produce(self, rows):
        """Wait until the actor has made so many more rows."""
        goal = self.actor.made + rows
        wait_until(lambda: self.actor.made >= goal, f"{rows} rows")

    def stand_still(self):
        self.nodes[self.scenario.slow].process.send_signal(signal.SIGSTOP)
        self.stopped.append(self.now_s)
        if self.scenario.is_filled:
            self._fill()

    def _fill(self):
        """Put something else into the broker until it has no room for anything more."""
        with contextlib.closing(self.broker.channel()) as channel, contextlib.suppress(StoreFull):
            for number in itertools.count():
                channel.call("SET", f"ballast:{number}", bytes(MIB))

    def go_on(self):
        self.nodes[self.scenario.slow].process.send_signal(signal.SIGCONT)
        self.stopped.append(self.now_s)


def draw(runs, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"actor": "#1f5fa8", "trainer": "#2a7f62", "recorder": "#6a4c93", "broker": "#c0583a"}
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained", sharey=True)
    for panel, run in zip(axes.flat, runs, strict=True):
        times = [at for at, _ in run.samples]
        for name in run.samples[0][1]:
            sizes = [sizes[name] / MIB for _, sizes in run.samples]
            panel.plot(times, sizes, label=name, color=colours[name])
        panel.axvspan(*run.stopped, color="#000000", alpha=0.08, label="stands still")
        panel.set_title(f"{run.scenario.title} ({run.actor.made * ROW_BYTES / MIB:,.0f} MiB made)")
        panel.set_xlabel("seconds")
        panel.set_ylabel("resident memory, MiB")
        panel.legend(loc="lower center", ncols=5, fontsize=8)
    axes.flat[0].set_ylim(0)  # of all, as they share it
    figure.savefig(path, dpi=90)


def main(path=None):
    never, runs = threading.Event(), []
    for scenario in SCENARIOS.values():
        with Run(scenario) as run:
            never.wait(4)
            run.stand_still()
            never.wait(12)
            run.go_on()
            never.wait(5)
        print(scenario.title)
        for name in run.samples[0][1]:
            before, most = run.most(name, 0, run.stopped[0]), run.most(name)
            print(f"  {name:9} {before / MIB:6.0f} MiB before, {most / MIB:6.0f} MiB at most")
        print("  ", next(line for line in reversed(run.actor.lines) if line.startswith("made")))
        told = [line for line in run.actor.lines if re.search("consumer '", line)]
        print("  ", told[-1] if told else "no consumer was named")
        runs.append(run)
    draw(runs, path or Path(ROOT, "docs", "backpressure.png"))


if __name__ == "__main__":
    roles = {"act": act, "train": train, "record": record}
    role, *args = [*sys.argv[1:], None][:1] + sys.argv[2:]
    roles[role](*args) if role in roles else main(role)
