"""``agentlace consumers``: who reads, how far behind; one that is gone is forgotten."""

import json
import os
import socket
import sys
import time

import pytest
from typer.testing import CliRunner

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.cli import main
from agentlace.cli.app import app
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore
from agentlace.transport.connection import Broker
from agentlace.transport.keys import SEEN_MS, ServiceKeys

CONFIG = TrainerConfig(port_number=5555)


@pytest.fixture
def keys(namespace):
    return ServiceKeys(namespace, "trainer", 5555).store("env")


@pytest.fixture
def channel(broker_url):
    channel = Broker(BrokerURL.parse(broker_url)).channel()
    yield channel
    channel.close()


@pytest.fixture
def system(broker_environment, keys, channel):
    """A trainer, an actor that has sent ten transitions, and a recorder that is gone."""
    server = TrainerServer(CONFIG)
    server.register_data_store("env", QueuedDataStore(100))
    server.start(threaded=True)
    channel.call("SADD", keys.consumers, "recorder:pick")
    store = QueuedDataStore(100)
    client = TrainerClient("env", "localhost", CONFIG, store)
    for n in range(10):
        store.insert(n)
    deadline = time.monotonic() + 20
    while not client.update_datastore("env", -1, confirm_update=True):
        assert time.monotonic() < deadline
    yield server
    client.stop()
    server.stop()


def run(*arguments):
    result = CliRunner().invoke(app, ["consumers", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def listed(*arguments):
    return {state["name"]: state for state in json.loads(run("--json", *arguments))}


def test_the_consumers_of_every_store(system, keys, channel):
    found = listed()
    trainer, recorder = sorted(found.values(), key=lambda state: state["name"], reverse=True)
    assert trainer["name"].startswith("trainer:") and trainer["is_alive"]
    assert (trainer["host"], trainer["pid"]) == (socket.gethostname(), os.getpid())
    assert (trainer["behind"], recorder["behind"]) == (0, 10)
    assert recorder["name"] == "recorder:pick" and not recorder["is_alive"]
    text = run()
    assert "recorder:pick" in text and "trainer:5555" in text and "silent for days" in text
    assert listed("--store", "env") and not listed("--store", "demos")
    assert "no consumers of store 'demos'" in run("--store", "demos")


def test_how_long_it_has_been_silent(system, keys, channel):
    told = json.dumps({"host": "lab3", "pid": 7, "progress_ms": 0})
    channel.call("SET", keys.consumer("recorder:pick"), told, "PX", SEEN_MS - 7_200_000)
    text = run()
    assert "silent for 2 h" in text and "lab3 pid 7" in text


def test_one_that_is_gone_is_forgotten(system, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["agentlace", "consumers", "forget", "recorder:nobody"])
    assert main() == 1
    assert "no consumer 'recorder:nobody'" in capsys.readouterr().err
    assert "forgot consumer 'recorder:pick', which was 10" in run("forget", "recorder:pick")
    assert "recorder:pick" not in listed()


def test_one_that_is_alive_is_forgotten_only_on_demand(system, monkeypatch, capsys):
    (name,) = [name for name in listed() if name.startswith("trainer:")]
    monkeypatch.setattr(sys, "argv", ["agentlace", "consumers", "forget", name])
    assert main() == 1
    told = capsys.readouterr().err
    assert f"consumer '{name}' is alive" in told and "--yes" in told
    assert name in listed()
    assert "forgot" in run("forget", name, "--yes")
    deadline = time.monotonic() + 20
    while name not in listed():  # it runs, and registers again
        assert time.monotonic() < deadline


def test_another_broker_and_namespace(system, namespace, broker_url, monkeypatch):
    monkeypatch.delenv("AGENTLACE_BROKER")
    address = broker_url.partition("?")[0]
    assert "recorder:pick" in listed("--broker", address, "--namespace", namespace)
    assert "recorder:pick" in listed("--broker", broker_url)
    assert not listed("--broker", address)
    gone = run("forget", "recorder:pick", "--broker", address, "--namespace", namespace)
    assert "forgot" in gone
