"""A whole system at work: actors send, a trainer publishes, a robot acts; and what must hold."""

import contextlib
import threading
import time
from collections import Counter

import numpy as np
import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.data import DataStoreBase, QueuedDataStore
from agentlace.errors import AlreadyServed
from tests.server_groups import wait_until

STORES = ("env", "demo")
NETWORK_BYTES = 200_000
"""More than rides inside a notification, so that leaves have keys of their own."""


class Record(DataStoreBase):
    """A store as users write them, which keeps the numbers that it got from each actor."""

    def __init__(self):
        super().__init__(capacity=1)
        self.rows = {}
        self.may_insert = threading.Event()
        self.may_insert.set()

    def insert(self, data):
        assert self.may_insert.wait(120)
        self.rows.setdefault(int(data["actor"]), []).append(int(data["number"]))

    def __len__(self):
        return sum(map(len, self.rows.values()))


class Workload:
    """Runs from its start until :meth:`finish`, which checks what it did. A context manager.

    Args:
        url: of the broker.
        trainer_port: number of the trainer service.
        action_port: number of the action service.
        row_bytes: size of an observation.
    """

    def __init__(self, url, trainer_port=5555, action_port=5556, row_bytes=400):
        self._url = url
        self._row = np.zeros(row_bytes, np.uint8)
        self._trainer_config = TrainerConfig(trainer_port)
        self._action_config = ActionConfig(action_port, ["move"], ["pose"], broadcast_port=1)
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._threads = []
        self._errors = []
        self.stores = {name: Record() for name in STORES}
        self.sent = Counter()
        self.published = 0
        self.networks = {}
        self.executed = Counter()
        self.acknowledged = []
        self.tried = 0
        self.observed = []
        self.shown = 0

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._start(stack.enter_context)
            self._stack = stack.pop_all()
        return self

    def _start(self, enter):
        self.trainer = enter(TrainerServer(self._trainer_config, broker=self._url))
        for name, store in self.stores.items():
            self.trainer.register_data_store(name, store)
        self.trainer.start(threaded=True)
        self.robot = enter(ActionServer(self._action_config, None, self._act, broker=self._url))
        self.robot.start(threaded=True)
        self.actors = [enter(self._actor(number)) for number in range(2)]
        self.caller = enter(ActionClient("", self._action_config, broker=self._url))
        self.caller.register_obs_callback(lambda seen: self.observed.append(int(seen["n"])))
        for work in (self._publish, self._call, self._show):
            self._run(work)
        for number, actor in enumerate(self.actors):
            self._run(self._send, number, actor)

    def _actor(self, number):
        queues = {name: QueuedDataStore(100_000) for name in STORES}
        actor = TrainerClient(
            "actor", "", self._trainer_config, data_stores=queues, broker=self._url
        )
        self.networks[number] = []
        actor.recv_network_callback(lambda tree: self.networks[number].append(int(tree["n"])))
        return actor

    def _run(self, work, *args):
        def run():
            try:
                work(*args)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _send(self, number, actor):
        while not self._stop.wait(0.01):
            self.send(number, actor, 5)
        while not actor.update():
            threading.Event().wait(0.05)

    def send(self, number, actor, rows):
        for name, queue in ((name, actor._outboxes[name].store) for name in STORES):
            for _ in range(rows):
                queue.insert({"actor": number, "number": self.sent[number, name], "o": self._row})
                self.sent[number, name] += 1
        return actor.update()

    def _publish(self):
        frozen = np.ones(NETWORK_BYTES, np.uint8)
        while not self._stop.wait(0.05):
            self.published += 1
            changing = np.full(NETWORK_BYTES, self.published % 256, np.uint8)
            self.trainer.publish_network({"n": self.published, "a": frozen, "b": changing})

    def _act(self, key, payload):
        self.executed[int(payload["n"])] += 1
        return {"n": payload["n"]}

    def _call(self):
        while not self._stop.wait(0.005):
            self.tried += 1
            reply = self.caller.act("move", {"n": self.tried})
            if reply is not None:
                assert reply["n"] == self.tried
                self.acknowledged.append(self.tried)

    def _show(self):
        while not self._stop.wait(0.02):
            self.shown += 1
            self.robot.publish_obs({"n": self.shown})

    def _behind(self, goal):
        """Return what has not come as far as it had been sent when the goal was set."""
        sent, published, tried, shown = goal
        reached = {
            **{("rows", *key): len(self.stores[key[1]].rows.get(key[0], ())) for key in sent},
            **{("networks", n): max(numbers, default=0) for n, numbers in self.networks.items()},
            ("acts",): max(self.acknowledged, default=0),
            ("observations",): max(self.observed, default=0),
        }
        goals = {("rows", *key): count for key, count in sent.items()}
        goals |= {("networks", number): published for number in self.networks}
        goals |= {("acts",): tried, ("observations",): shown}
        return [key for key, count in goals.items() if reached[key] <= count]

    def goes_on(self, kinds=("rows", "networks", "acts", "observations"), timeout_s=60.0):
        """Wait until something has got through that was sent, published and called after now."""
        keys = [(actor, name) for actor in self.networks for name in STORES]
        sent = {key: self.sent[key] for key in keys}
        goal = (sent, self.published, self.tried, self.shown)

        def behind():
            return [key for key in self._behind(goal) if key[0] in kinds]

        try:
            wait_until(lambda: self._errors or not behind(), timeout_s)
        except AssertionError:
            raise AssertionError(f"these stand still: {behind()}") from None
        assert not self._errors, self._errors

    def has_beaten(self):
        """Wait for a heartbeat of every node that is newer than its other connections."""
        began = time.monotonic()
        for node in (self.trainer, self.robot, self.caller, *self.actors):
            wait_until(lambda n=node: n._presence._beaten_s > began, what="a heartbeat")

    def refuses_a_second_trainer(self):
        """The lease is held at the new master as it was at the old one."""
        with pytest.raises(AlreadyServed):
            TrainerServer(self._trainer_config, broker=self._url).start(threaded=True)

    def finish(self, timeout_s=60.0):
        """Stop working, and check that nothing was lost, doubled or out of order."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            assert not thread.is_alive()
        assert not self._errors, self._errors
        for name, store in self.stores.items():
            for actor in range(len(self.actors)):
                expected = list(range(self.sent[actor, name]))
                self._wait_for_rows(store, actor, len(expected), timeout_s)
                assert store.rows[actor] == expected
        for numbers in self.networks.values():
            wait_until(lambda n=numbers: n[-1] == self.published, what="the newest network")
            assert numbers == sorted(set(numbers))
        assert not [number for number, times in self.executed.items() if times > 1]
        assert set(self.acknowledged) <= set(self.executed)
        assert self.observed == sorted(set(self.observed))
        assert self.trainer.counters() == {
            name: {"applied": len(store), "rejected": 0, "missing": 0}
            for name, store in self.stores.items()
        }

    def _wait_for_rows(self, store, actor, count, timeout_s):
        what = f"{count} rows of actor {actor}"
        wait_until(lambda: len(store.rows.get(actor, ())) >= count, timeout_s, what)

    def __exit__(self, *_):
        self._stop.set()
        for store in self.stores.values():
            store.may_insert.set()
        self._stack.close()
