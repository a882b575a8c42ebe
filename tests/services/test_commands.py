"""Commands to a trainer: done within a second, answered, never after their deadline."""

import contextlib
import json

import numpy as np
import pytest

from agentlace.config import BrokerURL, TrainerConfig
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.errors import PeerAbsent, RemoteError, RequestTimeout
from agentlace.trainer import TrainerClient, TrainerServer, commands
from agentlace.transport.commands import PAUSE, RESUME, SAVE, order
from agentlace.transport.connection import Broker
from agentlace.transport.keys import COMMANDS_MS, ServiceKeys

from .support import InThread, wait_until

TRAINER = TrainerConfig(5555)


@pytest.fixture
def desk(broker_url):
    """Whoever commands: returns what was done."""
    broker = Broker(BrokerURL.parse(broker_url))
    keys = ServiceKeys(broker.url.namespace, "trainer", 5555)
    with contextlib.closing(broker.channel()) as channel:

        def command(what, timeout_s=20.0):
            return order(channel, keys, what, "a test", timeout_s)

        command.channel, command.keys = channel, keys
        yield command


def trainer(broker_url, **kwargs):
    server = TrainerServer(TRAINER, broker=broker_url, **kwargs)
    server.register_data_store("arm", ReplayBuffer(100))
    return server


def test_pause_and_resume(desk, broker_url, running):
    running(trainer(broker_url)).start(threaded=True)
    client = running(TrainerClient("arm", "x", TRAINER, QueuedDataStore(10), broker=broker_url))
    assert not client.is_paused
    paused = InThread(lambda: desk(PAUSE))
    wait_until(lambda: client.is_paused, what="the pause")
    assert paused.result() == "all actors paused"
    assert desk(RESUME) == "resumed"
    wait_until(lambda: not client.is_paused, what="the end of the pause")


def test_an_actor_that_does_not_look_is_named(desk, broker_url, running, monkeypatch):
    monkeypatch.setattr(commands, "PAUSE_TIMEOUT_S", 0.5)
    running(trainer(broker_url)).start(threaded=True)
    blind = running(
        TrainerClient("arm", "x", TRAINER, QueuedDataStore(10), broker=broker_url, actor_id="blind")
    )
    assert desk(PAUSE) == "paused; not seen yet by blind"
    assert blind.is_paused


def test_a_checkpoint(desk, broker_url, running, tmp_path):
    server = running(trainer(broker_url, checkpoint=tmp_path / "kept"))
    server.start(threaded=True)
    server.data_store("arm").insert({"observations": np.zeros(3), "rewards": 1.0})
    assert desk(SAVE).startswith("checkpoint saved in ")
    other = trainer(broker_url, checkpoint=tmp_path / "kept")
    other.restore()
    assert len(other.data_store("arm")) == 1


def test_what_cannot_be_done_is_answered_with_why(desk, broker_url, running):
    running(trainer(broker_url)).start(threaded=True)
    with pytest.raises(RemoteError, match=r"CheckpointError: checkpoint .*path"):
        desk(SAVE)
    with pytest.raises(ValueError, match="no command 'explode'"):
        desk("explode")


def test_nobody_there(desk):
    with pytest.raises(PeerAbsent, match="trainer:5555"):
        desk(PAUSE)
    assert desk.channel.call("EXISTS", desk.keys.commands) == 0


def test_a_command_that_no_heartbeat_takes_is_withdrawn(desk, broker_url, running):
    """A trainer of an earlier version, or one that is stopped."""
    server = running(trainer(broker_url))
    server.start(threaded=True)
    server._commands._is_forbidden = True
    with pytest.raises(RequestTimeout, match="will not be executed") as caught:
        desk(PAUSE, timeout_s=0.2)
    assert caught.value.started is False
    assert desk.channel.call("LLEN", desk.keys.commands) == 0


def pushed(desk, **changes):
    now_ms = desk.channel.broker.now_ms()
    told = {"id": "c1", "what": PAUSE, "by": "x", "deadline_ms": now_ms + 60_000, **changes}
    desk.channel.call("RPUSH", desk.keys.commands, json.dumps(told).encode())


def answered(desk, name):
    popped = desk.channel.call("BLPOP", desk.keys.answer(name), "15", timeout_s=20.0)
    return json.loads(bytes(popped[1]))


def test_what_comes_late_or_damaged_is_not_done(desk, broker_url, running, caplog):
    server = running(trainer(broker_url))
    server.start(threaded=True)
    damaged = [b'{"what": []', b"[1]", b"", b"\xff", b'{"id": "no more"}', b"[" * 5000]
    desk.channel.call("RPUSH", desk.keys.commands, *damaged)
    pushed(desk, id="late", deadline_ms=desk.channel.broker.now_ms() - 500)
    pushed(desk, id="unknown", what="dance")
    pushed(desk, id="good")
    told = answered(desk, "late")
    assert not told["done"] and "after its deadline" in told["text"]
    assert "knows no command 'dance'" in answered(desk, "unknown")["text"]
    assert answered(desk, "good") == {"done": True, "type": "", "text": "all actors paused"}
    assert caplog.text.count("a command that cannot be read") == len(damaged)
    assert "command" in {kind for _, kind, _ in server.telemetry.told()["events"]}


def test_answers_and_commands_expire(desk, broker_url, running):
    running(trainer(broker_url)).start(threaded=True)
    pushed(desk)
    answers = desk.keys.answer("c1")
    wait_until(lambda: desk.channel.call("EXISTS", answers), what="the answer")
    assert 0 < wait_until(lambda: max(desk.channel.call("PTTL", answers), 0)) <= COMMANDS_MS
