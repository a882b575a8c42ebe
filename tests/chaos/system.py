"""A whole system of real processes, and what can be done to it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings

from .proxy import Proxy, wait_until

ROOT = Path(__file__).resolve().parents[2]
NODES = ("trainer", "recorder", "robot", "actor0", "actor1")
BEHIND_PROXY = ("recorder", "actor0", "actor1")
"""The others use the broker's Unix socket."""
ACTORS = ("actor0", "actor1")
SAMPLE_EVERY_S = 0.05
LOG_TAIL = 4000


class Node:
    """One program, that can be killed, frozen and started again."""

    def __init__(self, name, directory, url):
        self.name = name
        self._directory = directory
        self._url = url
        self.process = None
        self.died_s = float("-inf")

    def start(self):
        role, number = re.fullmatch(r"([a-z]+)(\d*)", self.name).groups()
        command = [sys.executable, "-m", "tests.chaos.nodes", role, str(self._directory)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "AGENTLACE_BROKER": self._url}
        with open(self._directory / f"{self.name}.log", "a") as log:
            self.process = subprocess.Popen(
                [*command, *([number] if number else [])],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.died_s = time.monotonic()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def finish(self):
        """Have it come to an end, and wait until it has."""
        self.process.stdin.write("finish\n")
        self.process.stdin.flush()

    @property
    def log(self):
        path = self._directory / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def says(self, word, times=1):
        def said():
            assert self.process.poll() is None, f"{self.name} ended: {self.log[-LOG_TAIL:]}"
            return self.log.count(f"{word}\n") >= times

        wait_until(said, f"{self.name} {word}")


class System:
    """Broker, proxy and nodes. A context manager that ends them all.

    Args:
        directory: of an own; for the nodes' files and the broker's.
        port: a free one.
        appendfsync: the broker's.
    """

    def __init__(self, directory, port, appendfsync="everysec"):
        self.directory = directory
        data = str(directory / "broker")
        settings = Settings(port=port, directory=data, appendfsync=appendfsync, maxmemory="2gb")
        self.embedded = EmbeddedBroker(settings)
        self._stack = contextlib.ExitStack()
        self._log_sizes = []
        self.broker_back_s = float("-inf")
        self._stop = threading.Event()

    def __enter__(self):
        stack = self._stack
        stack.callback(self.embedded.stop)
        self.embedded.start()
        self.proxy = stack.enter_context(Proxy(self.embedded.settings.port))
        # By its socket: a server that finds nobody at a port of this machine starts a broker there.
        direct = f"unix://{self.embedded.settings.socket_path}"
        proxied = f"redis://127.0.0.1:{self.proxy.port}"
        self.nodes = {
            name: Node(name, self.directory, proxied if name in BEHIND_PROXY else direct)
            for name in NODES
        }
        sampler = threading.Thread(target=self._sample, name="sample log", daemon=True)
        stack.callback(sampler.join)
        stack.callback(self._stop.set)
        sampler.start()
        for node in self.nodes.values():
            node.start()
            stack.callback(self._end, node)
        for node in self.nodes.values():
            node.says("running")
        return self

    def __exit__(self, *_):
        self._stack.close()

    @staticmethod
    def _end(node):
        with contextlib.suppress(ProcessLookupError):
            node.kill()

    # -- the broker --------------------------------------------------------------------------------

    def _logs(self):
        return sorted(Path(self.embedded.settings.directory).glob("appendonlydir/*.incr.aof"))

    def _sample(self):
        while not self._stop.wait(SAMPLE_EVERY_S):
            with contextlib.suppress(OSError):
                self._log_sizes.append(
                    (time.monotonic(), sum(f.stat().st_size for f in self._logs()))
                )

    def kill_broker(self):
        os.kill(self.embedded.pid, signal.SIGKILL)
        self.embedded.wait()

    def cut_power(self, age_s):
        """End the broker as a power cut would: of its log, what came later than that is gone."""
        cut_s = time.monotonic() - age_s
        size = max((size for at, size in self._log_sizes if at <= cut_s), default=0)
        self.kill_broker()
        (log,) = self._logs()
        os.truncate(log, min(size, log.stat().st_size))

    def signal_broker(self, number):
        os.kill(self.embedded.pid, number)

    def start_broker(self):
        self.embedded.start()
        self.broker_back_s = time.monotonic()

    def command(self, *commands):
        """Tell the broker something over a connection of its own, if it listens."""
        url = BrokerURL.parse(str(self.embedded.settings.url))
        with (
            contextlib.closing(Broker(url).channel()) as channel,
            contextlib.suppress(AgentlaceError),
        ):
            return [channel.call(*command, timeout_s=2.0) for command in commands]

    def cut_clients(self):
        kinds = ("normal", "pubsub")
        self.command(*(("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes") for kind in kinds))

    def fill_memory(self):
        told = self.command(("INFO", "memory"))
        if told:
            used = re.search(rb"used_memory:(\d+)", bytes(told[0]))
            self.command(("CONFIG", "SET", "maxmemory", used[1]))

    def free_memory(self):
        free = ("CONFIG", "SET", "maxmemory", 2 << 30)
        wait_until(lambda: self.command(free), "room in the broker")

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, say=print):
        """Have all nodes come to an end: actors first, then the newest network, then the rest."""
        for names in (ACTORS, ("trainer",), ("recorder", "robot")):
            for name in names:
                self.nodes[name].finish()
            for name in names:
                self.nodes[name].says("finished")
            say(f"{time.strftime('%H:%M:%S')} finished: {', '.join(names)}")

    def tell(self):
        """Return the last words of every node, for the report of a failure."""
        parts = [f"--- {name}\n{node.log[-LOG_TAIL:]}" for name, node in self.nodes.items()]
        return "\n".join(parts)
