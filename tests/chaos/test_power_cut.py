"""What a power cut at the broker takes away, by ``appendfsync``, and what is sent again.

SIGKILL is no power cut: what the broker has written survives it in the page cache. Here its log
is cut back to a length that was on disk at an earlier moment.
"""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from agentlace.errors import BrokerUnreachable
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.producer import Producer
from agentlace.transport.streams import Retention

from .proxy import wait_until

KEYS = ServiceKeys("default", "trainer", 5555)
SEND_S = 20.0


class Site:
    """A broker, an actor and its consumers, in this process."""

    def __init__(self, stack, directory, port, appendfsync):
        settings = Settings(port=port, directory=str(directory), appendfsync=appendfsync)
        self._stack = stack
        self.embedded = stack.enter_context(EmbeddedBroker(settings))
        self.broker = Broker(settings.url)
        self.log = Path(settings.directory, "appendonlydir", "appendonly.aof.1.incr.aof")

    def actor(self):
        channel = self._stack.enter_context(contextlib.closing(self.broker.channel()))
        actor = Producer(channel, KEYS.store("env"), "robot", Retention)
        self._stack.callback(actor._durability.stop)
        channel.call("SET", KEYS.client("robot"), "{}")
        return actor

    def consumer(self, name="trainer"):
        found = []

        def apply(actor, chunk, last):
            found.extend(row["n"] for row in chunk.rows())

        consumer = Consumer(self.broker, KEYS, "env", apply, name, {})
        self._stack.callback(consumer.stop)
        consumer.found = found
        consumer.start()
        return consumer

    def cut_power(self, size):
        os.kill(self.embedded.pid, signal.SIGKILL)
        self.embedded.wait()
        os.truncate(self.log, size)
        self.embedded.start()


@pytest.fixture
def site(tmp_path, unused_port):
    with contextlib.ExitStack() as stack:
        yield lambda appendfsync: Site(stack, tmp_path / "data", unused_port, appendfsync)


def send(actor, start, stop):
    actor.take([{"n": n, "pose": np.full(50, n)} for n in range(start, stop)], {})

    def sent():
        with contextlib.suppress(BrokerUnreachable):
            actor.flush(SEND_S)
            return True

    wait_until(sent, "a flush")


def test_always_loses_nothing_that_was_acknowledged(site):
    """Though the actor is gone as well: what update() has confirmed was on disk before."""
    site = site("always")
    actor = site.actor()
    for n in range(0, 50, 5):
        send(actor, n, n + 5)
    acknowledged = site.log.stat().st_size
    actor.take([{"n": -1}], {})  # of what comes after, any part may be there
    actor.flush(SEND_S)
    actor._durability.stop()
    site.cut_power(acknowledged + 20)
    late = site.consumer()
    wait_until(lambda: len(late.found) >= 50, "the rows")
    assert late.found == list(range(50)) and late.gaps == 0


def test_everysec_loses_a_second_if_the_actor_is_gone_as_well(site):
    """The page says so. What is left is whole, and in order, and a successor goes on after it."""
    site = site("everysec")
    actor = site.actor()
    send(actor, 0, 30)
    on_disk = site.log.stat().st_size
    send(actor, 30, 50)
    actor._durability.stop()
    site.cut_power(on_disk)
    successor = site.actor()
    send(successor, 100, 110)
    late = site.consumer()
    wait_until(lambda: len(late.found) >= 40, "the rows")
    assert late.found == [*range(30), *range(100, 110)]


@pytest.mark.parametrize("idle", [False, True], ids=["busy", "idle"])
def test_everysec_loses_nothing_while_the_actor_is_there(site, idle):
    """It sends again what was not on disk; the trainer that has it keeps what it has."""
    site = site("everysec")
    actor, quick = site.actor(), site.consumer("quick")
    send(actor, 0, 30)
    on_disk = site.log.stat().st_size
    for n in range(30, 100, 5):
        send(actor, n, n + 5)
    wait_until(lambda: len(quick.found) == 100, "the trainer's rows")
    site.cut_power(on_disk + 100)  # in the middle of an entry
    with contextlib.closing(site.broker.channel()) as channel:
        wait_until(lambda: beaten(actor, channel), "a heartbeat")
    send(actor, 100, 100 if idle else 110)
    late, last = site.consumer("late"), 100 if idle else 110
    wait_until(lambda: len(late.found) >= last and len(quick.found) >= last, "the rows")
    assert late.found == quick.found == list(range(last))
    assert late.gaps == quick.gaps == 0


def beaten(actor, channel):
    with contextlib.suppress(BrokerUnreachable):
        actor.beat(channel)
        return True
