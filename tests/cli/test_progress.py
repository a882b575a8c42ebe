"""What takes longer than a moment says how far it is, on a terminal and anywhere else."""

import contextlib
import logging
import re
import threading

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer, progress
from agentlace.cli.progress import shown
from agentlace.data import QueuedDataStore, ReplayBuffer
from agentlace.data.demos import load_demos, save_demos
from agentlace.errors import AlreadyServed
from agentlace.progress import Logged, counted
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.cli.programs import SOON, OnTerminal, Piped
from tests.ports import free_port

PROGRAM = f"""{SOON}
from agentlace.cli.progress import shown
with shown("verifying [cube]", 4, "episodes") as advance:
    advance(1)
    advance(1)
    input()
with shown("drawing"):
    input()
print("done")
"""


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


def test_plain_lines_where_there_is_no_terminal():
    with Piped(PROGRAM) as program:
        program.until(r"verifying \[cube\]: 2 of 4 episodes, \d s\n.*\n")
        program.tell("\n")
        program.until(r"drawing: \d s\n")
        assert program.end("\n") == "done\n"
    assert "\x1b" not in program.said and "\r" not in program.said


def test_a_bar_on_a_terminal():
    with OnTerminal(PROGRAM) as program:
        program.until(r"verifying \[cube\] .*2/4.* episodes")
        program.tell("\n")
        program.until(r"drawing .*0:00:0")
        assert program.end("\n") == "done\n"
    assert program.said.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # nothing of it stays


def test_what_is_quick_says_nothing(capsys):
    with shown("verifying", 1, "episodes") as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_the_log_tells_of_the_library(caplog, at_once):
    caplog.set_level(logging.INFO)
    done = Logged(logging.getLogger("agentlace.test"), "reading runs/1", 4e6, "MB", 1e6)
    assert list(counted([1, 3], lambda n: done(2e6 * n))) == [1, 3]
    assert caplog.messages == [
        "reading runs/1: 2 of 4 MB, 50 %",
        "reading runs/1: 4 of 4 MB, 100 %",
    ]


def test_loading_demonstrations_is_told_without_any_setting(caplog, at_once, tmp_path):
    save_demos(tmp_path / "demos.npz", [{"observations": np.zeros(3)}] * 1500)
    load_demos(ReplayBuffer(2000), tmp_path / "demos.npz")
    path = tmp_path / "demos.npz"
    assert caplog.messages == [
        f"loading {path}: 1,024 of 1,500 transitions, 68 %",
        f"loading {path}: 1,500 of 1,500 transitions, 100 %",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_trainer_that_restores_is_told(caplog, at_once, tmp_path, broker_url):
    def server():
        server = TrainerServer(TrainerConfig(), broker=broker_url, checkpoint=tmp_path / "run")
        server.register_data_store("env", ReplayBuffer(2000))
        return server

    with server() as before:
        save_demos(tmp_path / "demos.npz", [{"observations": np.zeros(100)}] * 2000)
        load_demos(before.data_store("env"), tmp_path / "demos.npz")
        before.save(extra={"step": 1})
    caplog.clear()
    with server() as after:
        assert after.restore() == {"step": 1}
    told = [m for m in caplog.messages if re.search(r": 2 of 2 MB, 100 %$", m)]
    assert {message.split()[0] for message in told} == {"checking", "reading"}


def test_a_large_network_that_is_fetched_is_told(caplog, at_once, broker_url):
    caplog.set_level(logging.INFO)
    with TrainerServer(TrainerConfig(), broker=broker_url) as server:
        server.start(threaded=True)
        server.publish_network({"w": np.zeros(5_000_000)})
        arrived = threading.Event()
        with TrainerClient(
            "env", "localhost", TrainerConfig(), QueuedDataStore(10), broker=broker_url
        ) as client:
            client.recv_network_callback(lambda network: arrived.set())
            assert arrived.wait(20)
    assert re.search(r"fetching network \S+: 40 of 40 MB, 100 %", caplog.text)


def test_a_server_that_waits_for_anothers_lease_is_told(caplog, at_once, broker_url):
    with TrainerServer(TrainerConfig(), broker=broker_url) as server:
        server.start(threaded=True)
        with TrainerServer(TrainerConfig(), broker=broker_url) as second:
            with pytest.raises(AlreadyServed):
                second.start(threaded=True)
    assert "trainer:5555 waits for the lease of one that may be dead to end" in caplog.text


class Slow(Settings):
    """Of a broker that loads its data slowly: it rests a moment at one of three keys."""

    def config(self):
        return f"{super().config()}\nkey-load-delay -3\n"


def test_a_broker_that_loads_its_data_is_told(caplog, at_once, tmp_path):
    with EmbeddedBroker(Settings(port=free_port(), directory=str(tmp_path))) as broker:
        with contextlib.closing(Broker(broker.settings.url).channel()) as channel:
            channel.exchange([("SET", f"key {n}", "x" * 100) for n in range(30_000)])
    with EmbeddedBroker(Slow(port=free_port(), directory=str(tmp_path))) as broker:
        told = f"the broker at {broker.settings.url} is being started: "
        assert re.search(rf"{re.escape(told)}\d+\.\d+ % of its data is loaded", caplog.text)
