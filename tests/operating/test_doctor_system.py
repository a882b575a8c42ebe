"""Faults of the nodes and the streams: does the doctor name each?"""

import contextlib
import json
import os
import time

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace._version import __version__
from agentlace.config import described
from agentlace.data import QueuedDataStore
from agentlace.errors import AgentlaceError
from agentlace.operating.doctor import extras as extras_module
from agentlace.transport.identity import describe
from agentlace.transport.keys import LEASE_MS, SEEN_MS, ServiceKeys
from agentlace.transport.streams import Retention
from tests.services.support import Program, wait_until

from .doctoring import Diagnosis, channel_to

CONFIG = TrainerConfig(request_types=["ask"])
TRAINER = """
import sys
from agentlace import TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore
server = TrainerServer(TrainerConfig(request_types=["ask"]))
server.register_data_store("env", QueuedDataStore(100))
server.start(threaded=True)
print("serving", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def running():
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def server_of(running, broker_url, config=CONFIG, retention=None):
    server = running(TrainerServer(config, broker=broker_url))
    kwargs = {} if retention is None else {"retention": retention}
    server.register_data_store("env", QueuedDataStore(10_000), **kwargs)
    server.start(threaded=True)
    return server


def client_of(running, broker_url, queue=None, config=CONFIG):
    queue = QueuedDataStore(1000) if queue is None else queue
    return running(
        TrainerClient("env", "x", config, queue, broker=broker_url, actor_id="arm-1", strict=False)
    )


def seen(broker_url, check, status, *words):
    """Return the first diagnosis that names it: heartbeats come once a second."""

    def found():
        diagnosis = Diagnosis(broker_url)
        try:
            diagnosis.names(check, status, *words)
        except AssertionError as error:
            last[:] = [str(error)]
            return None
        return diagnosis

    last = []
    try:
        return wait_until(found, what=f"{status} of {check}")
    except AssertionError:
        raise AssertionError(last[0]) from None


def test_a_healthy_system(running, broker_url):
    server_of(running, broker_url)
    client_of(running, broker_url)
    found = seen(broker_url, "peers", "ok", "actor arm-1 of trainer:5555", "last progress")
    found.names("peers", "ok", "trainer of trainer:5555", f"pid {os.getpid()}")
    found.names("configs", "ok", "1 of the clients")
    found.names("streams", "ok", "store 'env' of trainer:5555", "of 512 MiB wait")
    found.names("consumers", "ok", "0 transitions behind")
    found.names("versions", "ok", f"agentlace {__version__} here; 2 nodes have it too")
    assert found.bad() == ["persistence"]  # the tests' broker keeps nothing on disk


def test_another_namespace(running, broker_url, namespace):
    server_of(running, broker_url)
    found = Diagnosis(broker_url.replace(namespace, "elsewhere"))
    found.names("peers", "warn", "nobody is in namespace 'elsewhere'", "--namespace")
    assert namespace in found.one("peers").found


def test_a_trainer_that_is_frozen(running, broker_url):
    with Program(TRAINER, broker=broker_url) as trainer:
        trainer.line("serving")
        client = client_of(running, broker_url)
        trainer.freeze()
        pid = f"pid {trainer.process.pid}"
        found = seen(broker_url, "peers", "fail", "no sign of life", pid, "kill -CONT")
        assert "peers" in found.bad()
        found = seen(broker_url, "peers", "fail", "trainer:5555 is gone", pid)
        found.names("peers", "fail", "its clients are still there: arm-1")
        client.stop()
        Diagnosis(broker_url).names("peers", "info", "trainer:5555 is gone", pid)
        trainer.thaw()
        seen(broker_url, "peers", "ok", "trainer of trainer:5555", pid)


def test_clients_that_nobody_serves(broker_url, namespace):
    keys = ServiceKeys(namespace, "action", 5556)
    with channel_to(broker_url) as channel:
        _announce(channel, keys.client("driver"), describe("client", "driver"))
        Diagnosis(broker_url).names("peers", "fail", "nobody serves action:5556", "driver")


def test_ends_with_different_configs(running, broker_url):
    server = server_of(running, broker_url)
    client_of(running, broker_url)
    server.stop()
    server_of(running, broker_url, TrainerConfig(request_types=["ask", "more"]))
    found = Diagnosis(broker_url)
    found.names(
        "configs", "fail", "arm-1", "request_types=['ask']", "['ask', 'more']", "same config"
    )


def test_ends_with_different_versions(running, broker_url, namespace):
    server_of(running, broker_url)
    keys = ServiceKeys(namespace, "trainer", 5555)
    with channel_to(broker_url) as channel:
        told = {"version": "0.0.9", "config": described(CONFIG)}
        _announce(channel, keys.client("arm-2"), describe("client", "arm-2", **told))
        found = Diagnosis(broker_url)
        found.names("versions", "warn", "arm-2", "0.0.9", f"pip install 'agentlace=={__version__}'")
        assert found.one("configs").status == "ok"
        _announce(channel, keys.client("arm-3"), {"name": "arm-3", "host": "h", "pid": 1})
        found = Diagnosis(broker_url)
        found.names("versions", "warn", "arm-3", "does not tell its version")


def test_a_dead_consumer_holds_the_stream(running, broker_url, namespace):
    keys = ServiceKeys(namespace, "trainer", 5555).store("env")
    server_of(running, broker_url, retention=Retention(max_bytes=1 << 20))
    queue = QueuedDataStore(1000)
    client = client_of(running, broker_url, queue)
    with channel_to(broker_url) as channel:
        channel.call("SADD", keys.consumers, "recorder:pick")
        told = json.dumps({"host": "lab3", "pid": 7, "progress_ms": 0})
        channel.call("SET", keys.consumer("recorder:pick"), told, "PX", SEEN_MS - 7_200_000)
        for _ in range(3):
            queue.insert({"frame": np.random.bytes(100_000)})
            assert client.update()
        found = Diagnosis(broker_url)
        forget = "agentlace consumers forget recorder:pick"
        found.names("consumers", "warn", "recorder:pick (lab3 pid 7)", "3 transitions", forget)
        found.names("consumers", "warn", "silent for 2 h")
        found.names("streams", "ok", "of 1.0 MiB wait to be read")
        with pytest.raises(AgentlaceError):
            client.strict = True
            while True:
                queue.insert({"frame": np.random.bytes(30_000)})
                client.update()
        found = Diagnosis(broker_url)
        found.names("streams", "fail", "recorder:pick", "update() of its actors fails", forget)
        assert {"streams", "consumers"} <= set(found.bad())


def test_what_everybody_has_read_is_no_trouble(running, broker_url):
    """A stream keeps what was read until its room is needed: it may be as full as it likes."""
    server_of(running, broker_url, retention=Retention(max_bytes=1 << 20))
    queue = QueuedDataStore(1000)
    client = client_of(running, broker_url, queue)
    for _ in range(15):
        queue.insert({"frame": np.random.bytes(100_000)})
        wait_until(lambda: client.update_datastore("env", -1, confirm_update=True))
    found = Diagnosis(broker_url)
    (store,) = _stores(broker_url)
    assert store.nbytes > 0.7 * (1 << 20)
    assert store.unread_bytes == 0
    found.names("streams", "ok", "0 B of 1.0 MiB wait to be read")


def test_a_store_that_drops(running, broker_url, namespace):
    keys = ServiceKeys(namespace, "trainer", 5555).store("env")
    retention = Retention(max_bytes=1 << 20, when_full="drop_oldest")
    server_of(running, broker_url, retention=retention)
    queue = QueuedDataStore(1000)
    client = client_of(running, broker_url, queue)
    with channel_to(broker_url) as channel:
        channel.call("SADD", keys.consumers, "recorder:pick")
    for _ in range(15):
        queue.insert({"frame": np.random.bytes(100_000)})
        assert client.update()
    Diagnosis(broker_url).names("streams", "warn", "the oldest are dropped", "recorder:pick")


def test_a_consumer_that_is_there_and_stuck(broker_url, namespace):
    keys = ServiceKeys(namespace, "trainer", 5555).store("env")
    with channel_to(broker_url) as channel:
        channel.call("SADD", keys.actors, "arm-1")
        channel.call("XADD", keys.stream("arm-1"), "1-50", "first", 1)
        channel.call("SADD", keys.consumers, "trainer:a")
        told = json.dumps({"host": "gpu", "pid": 7, "progress_ms": 1000 * (time.time() - 60)})
        channel.call("SET", keys.consumer("trainer:a"), told, "PX", SEEN_MS)
        found = Diagnosis(broker_url)
    found.names("consumers", "warn", "50 transitions behind", "has not moved for 60 s", "gpu")


def test_extras_that_are_missing(monkeypatch, broker_url):
    monkeypatch.setitem(extras_module.EXTRAS, "web", (("no_such_module",), "the dashboard"))
    found = Diagnosis(broker_url)
    found.names(
        "extras", "info", "not here: web, for the dashboard", "pip install 'agentlace[web]'"
    )
    assert "extras" not in found.bad()


def test_every_extra_is_looked_for():
    tomllib = pytest.importorskip("tomllib")
    from tests.services.support import ROOT

    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(extras) - set(extras_module.EXTRAS) == {"all", "dev", "examples"}


def _announce(channel, key, info):
    told = {**info, "progress_ms": round(1000 * time.time())}
    channel.call("SET", key, json.dumps(told), "PX", LEASE_MS)


def _stores(broker_url):
    from agentlace.config import BrokerURL
    from agentlace.operating import take

    with channel_to(broker_url) as channel:
        return take(channel, BrokerURL.parse(broker_url).namespace).stores
