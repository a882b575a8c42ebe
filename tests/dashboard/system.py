"""A whole system of real processes with a dashboard, for a browser to look at."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port
from tests.services.support import ROOT, wait_until

from .support import ADMIN, Visitor

STOP_S = 10.0


class System:
    """A broker, nodes, and ``agentlace dashboard``. A context manager.

    Attributes:
        url: of the dashboard.
        nodes: processes by name.
    """

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name)
        self.port = free_port()
        self.broker = self._broker()
        self.nodes = {}
        self.url = ""

    def _broker(self):
        return EmbeddedBroker(Settings(port=self.port, maxmemory="256mb"))

    def __enter__(self):
        self.broker.start()
        try:
            self._start("dashboard", "agentlace", "dashboard", "--port", "0")
            self.start_all()
            line = self.nodes["dashboard"].stdout.readline()
            self.url = line.split(" at ")[-1].split()[0]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for node in self.nodes.values():
            node.send_signal(signal.SIGCONT)
            node.send_signal(signal.SIGTERM)
        for node in self.nodes.values():
            try:
                node.wait(STOP_S)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
            node.stdout.close()
        self.broker.stop()
        self._directory.cleanup()

    def _start(self, name, module, *arguments):
        self.nodes[name] = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={
                **os.environ,
                **{"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
                "AGENTLACE_BROKER": f"redis://127.0.0.1:{self.port}",
                "AGENTLACE_DASHBOARD_ADMIN_PASSWORD": ADMIN,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, name, role, *arguments):
        """Start a node; returns at once."""
        self._start(name, "tests.dashboard.nodes", role, *arguments)

    def start_all(self):
        """Start a trainer, two actors, a robot with a policy and its pilot; wait for all."""
        self.start("trainer", "trainer", self.path / "checkpoint")
        self.start("robot", "robot")
        self.start("pilot", "pilot")
        for number in (0, 1):
            self.start(f"actor {number}", "actors", number, 1)
        self.ready(*(name for name in self.nodes if name != "dashboard"))

    def ready(self, *names):
        for name in names:
            lines = iter(self.nodes[name].stdout.readline, "")
            assert "ready\n" in lines, name

    def kill(self, name):
        """Kill a node without a goodbye."""
        node = self.nodes.pop(name)
        node.kill()
        node.wait()
        node.stdout.close()

    def kill_broker(self):
        os.kill(self.broker.pid, signal.SIGKILL)
        wait_until(lambda: not _is_alive(self.broker.pid), what="the end of the broker")

    def restart_broker(self):
        self.broker.stop()
        self.broker = self._broker()
        self.broker.start()

    def state(self):
        return Visitor(self.url).get("/api/state").told


def _is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
