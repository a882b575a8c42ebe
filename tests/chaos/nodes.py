"""The nodes of a system under chaos, as programs that may be killed at any moment.

nodes.py actor DIRECTORY NUMBER     sends numbered transitions, receives networks, calls act
nodes.py trainer DIRECTORY          fills a store, publishes numbered networks
nodes.py recorder DIRECTORY         a second consumer: rows and positions in one transaction
nodes.py robot DIRECTORY            executes act

Each writes what it did into files of its own in DIRECTORY, line by line, so that what it has
written survives its death. On the line "finish" it comes to an end, says "finished" and stays.
"""

import contextlib
import logging
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

import numpy as np

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.config import BrokerURL
from agentlace.data import DataStoreBase, QueuedDataStore
from agentlace.errors import AgentlaceError
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import StreamId

ACTION = ActionConfig(5556, ["move"], [])
TRAINER = TrainerConfig(5555)
STORE = "env"
RECORDER = "recorder:chaos"
ROWS_PER_UPDATE = 4
UPDATE_EVERY_S = 0.02
PUBLISH_EVERY_S = 0.2
ACT_EVERY_S = 0.05
ACT_TIMEOUTS_MS = (300, 3000)
OBSERVATION = 100


def lives(directory, name):
    """Return how many lives a node had before this one, and note that one more begins."""
    path = Path(directory) / f"{name}.lives"
    with open(path, "a") as file:
        file.write("born\n")
    return len(path.read_text().splitlines()) - 1


class Journal:
    """A file of lines, each written at once."""

    def __init__(self, directory, name):
        self._file = open(Path(directory) / name, "a", buffering=1)

    def note(self, *words):
        self._file.write(" ".join(map(str, words)) + "\n")


class Finish:
    """Whether this node was told to come to an end."""

    def __init__(self):
        self.told = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in sys.stdin:
            if line.strip() == "finish":
                self.told.set()
        os._exit(0)  # who has started it is gone

    def say(self):
        print("finished", flush=True)
        threading.Event().wait()


def stay_on_tcp():
    """Keep this node from moving to the broker's Unix socket, past the proxy."""
    Broker._moved_to_socket = lambda self, connection, timeout_s: connection


def persist(make):
    """Return what a constructor makes, however often it takes."""
    while True:
        try:
            return make()
        except AgentlaceError as error:
            logging.warning("tries again: %s", error)
            threading.Event().wait(0.1)


def act(directory, number):
    """Play an actor: transitions out, networks in, and actions in a thread of its own."""
    finish, life = Finish(), lives(directory, f"actor{number}")
    stay_on_tcp()
    sent = Journal(directory, f"actor{number}.acknowledged")
    networks = Journal(directory, f"actor{number}.networks")
    store = QueuedDataStore(1_000_000)
    client = persist(
        lambda: TrainerClient(
            STORE, "localhost", TRAINER, store, wait_for_server=True, actor_id=f"arm{number}"
        )
    )
    client.recv_network_callback(lambda tree: networks.note(life, tree["life"], tree["n"]))
    threading.Thread(target=move, args=(directory, number, life, finish), daemon=True).start()
    print("running", flush=True)
    count = 0
    while not finish.told.wait(UPDATE_EVERY_S):
        for _ in range(ROWS_PER_UPDATE):
            observation = np.full(OBSERVATION, count, np.float32)
            row = {"actor": number, "life": life, "n": count, "observations": observation}
            store.insert(row)
            count += 1
        if client.update():
            sent.note(life, count - 1)
    while not client.update_datastore(STORE, -1, confirm_update=True):
        pass
    sent.note(life, count - 1)
    finish.say()


def move(directory, number, life, finish):
    """Call act again and again; note when each call was made, its deadline and its outcome."""
    calls = Journal(directory, f"actor{number}.acts")
    client = persist(lambda: ActionClient("localhost", ACTION, wait_for_server=True))
    count = 0
    while not finish.told.wait(ACT_EVERY_S):
        client.timeout_ms = ACT_TIMEOUTS_MS[count % len(ACT_TIMEOUTS_MS)]
        name = f"{number}.{life}.{count}"
        end = time.monotonic() + client.timeout_ms / 1000
        reply = client.act("move", {"id": name})
        started = True if reply is not None else getattr(client.last_error, "started", None)
        error_ms = client._broker.clock_error_ms
        calls.note(name, end, error_ms, reply is not None, started)
        count += 1


class Rows(DataStoreBase):
    """A trainer's store, as users write them, whose rows survive in a file."""

    def __init__(self, directory, life):
        super().__init__(capacity=1)
        self._journal = Journal(directory, f"trainer.{life}.rows")
        self._length = 0

    def insert(self, data):
        assert (data["observations"] == data["n"]).all(), data
        self._length += 1
        self._journal.note(data["actor"], data["life"], data["n"])

    def __len__(self):
        return self._length


def train(directory):
    finish, life = Finish(), lives(directory, "trainer")
    published = Journal(directory, "trainer.published")
    server = TrainerServer(TRAINER)
    server.register_data_store(STORE, Rows(directory, life))
    persist(lambda: server.start(threaded=True))
    print("running", flush=True)
    count = 0
    while True:
        is_last = finish.told.wait(PUBLISH_EVERY_S)
        count += 1
        # Every other one is too large to ride inside its own notification.
        size = 30_000 if count % 2 else 10
        server.publish_network({"life": life, "n": count, "w": np.full(size, count, np.float32)})
        published.note(life, count)
        if is_last:
            break
    finish.say()


class Dataset:
    """Rows and, in the same transaction, how far each actor's stream was read."""

    def __init__(self, path):
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # it is killed, the machine is not
        self._db.execute("CREATE TABLE IF NOT EXISTS rows (actor, life, n)")
        self._db.execute("CREATE TABLE IF NOT EXISTS positions (actor PRIMARY KEY, position)")

    def positions(self):
        found = self._db.execute("SELECT actor, position FROM positions")
        return {actor: StreamId.parse(text.encode()) for actor, text in found}

    def apply(self, actor, chunk, last):
        rows = [(row["actor"], row["life"], row["n"]) for row in chunk.rows()]
        for row in chunk.rows():
            assert (row["observations"] == row["n"]).all(), row
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        self._db.execute("REPLACE INTO positions VALUES (?, ?)", (actor, str(last)))
        self._db.execute("COMMIT")


def record(directory):
    finish = Finish()
    lives(directory, "recorder")
    stay_on_tcp()
    dataset = Dataset(Path(directory) / "dataset.sqlite")
    url = BrokerURL.resolve(None)
    keys = ServiceKeys(url.namespace, "trainer", TRAINER.port_number)
    positions = dataset.positions()
    args = (Broker(url), keys, STORE, dataset.apply, RECORDER, positions)
    consumer = Consumer(*args)
    persist(consumer.start)
    print("running", flush=True)
    finish.told.wait()
    print("rejected", consumer.rejected, "gaps", consumer.gaps, flush=True)
    finish.say()


def serve(directory):
    finish, life = Finish(), lives(directory, "robot")
    done = Journal(directory, "robot.executed")

    def execute(key, payload):
        started = time.monotonic()
        done.note(payload["id"], started, server._broker.clock_error_ms, life)
        return {"id": payload["id"]}

    server = ActionServer(ACTION, None, execute)
    persist(lambda: server.start(threaded=True))
    print("running", flush=True)
    finish.told.wait()
    finish.say()


def main():
    role, directory, *more = sys.argv[1:]
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s.%(msecs)03d {role}{''.join(more)} %(message)s",
        datefmt="%H:%M:%S",
    )
    play = {"actor": act, "trainer": train, "recorder": record, "robot": serve}[role]
    with contextlib.suppress(KeyboardInterrupt):
        play(directory, *map(int, more))


if __name__ == "__main__":
    main()
