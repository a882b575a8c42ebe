"""A failover to a replica that had not got all that the master had confirmed."""

import contextlib
import threading

import numpy as np
import pytest
import redis

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore
from agentlace.errors import ActorReplaced
from tests.ha.workload import Record
from tests.server_groups import wait_until

CHUNKS = 60
CHUNK_BYTES = 500_000
"""Together far more than the kernel keeps for a replica that does not read."""


def check_resend(url, master, replica):
    """Pause the replica, send, kill the master: the replica takes over without most of it."""
    config, store = TrainerConfig(5557), Record()
    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(TrainerServer(config, broker=url))
        stack.callback(store.may_insert.set)
        trainer.register_data_store("env", store)
        trainer.start(threaded=True)
        queue, actor = _actor(stack, config, url)
        queue.insert({"actor": 0, "number": 0})
        assert actor.update()
        wait_until(lambda: len(store) == 1)
        wait_until(lambda: _offset(master) == _offset(replica), what="a replica that has all")
        store.may_insert.clear()  # what comes now is not read by the trainer from the old master
        _fail_over(master, replica, queue, actor)
        store.may_insert.set()
        tick = threading.Event()
        wait_until(lambda: (actor.update() and len(store) == CHUNKS) or tick.wait(0.05))
        assert store.rows[0] == list(range(CHUNKS))
        assert trainer.counters()["env"] == {"applied": CHUNKS, "rejected": 0, "missing": 0}
        _check_fence(stack, config, url, queue, actor)
        wait_until(lambda: len(store) == CHUNKS + 1)
        assert store.rows[0] == list(range(CHUNKS + 1))


def _actor(stack, config, url):
    queue = QueuedDataStore(CHUNKS)
    actor = TrainerClient(
        *("env", "", config, queue), timeout_ms=20_000, actor_id="robot", broker=url
    )
    return queue, stack.enter_context(actor)


def _fail_over(master, replica, queue, actor):
    replica.pause()
    try:
        frame = np.zeros(CHUNK_BYTES, np.uint8)
        for number in range(1, CHUNKS):
            queue.insert({"actor": 0, "number": number, "frame": frame})
            assert actor.update()
        offset = _offset(master)
        master.kill()
    finally:
        replica.go_on()
    wait_until(lambda: _is_master(replica), what="a replica that took over")
    assert _offset(replica) < offset, "the replica had all: this shows nothing"


def _check_fence(stack, config, url, old_queue, old):
    """Who takes an actor's identity over after a failover shuts the old one out."""
    queue, new = _actor(stack, config, url)
    queue.insert({"actor": 0, "number": CHUNKS})
    assert new.update()
    old_queue.insert({"actor": 0, "number": -1})
    with pytest.raises(ActorReplaced):
        old.update()


def _is_master(node):
    with contextlib.suppress(redis.ConnectionError):  # clients are cut off when it takes over
        return node.client.role()[0] == "master"


def _offset(node):
    """Return how far a server's copy is: of what it has written, or has been told."""
    return node.client.info("replication")["master_repl_offset"]
