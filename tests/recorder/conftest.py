"""A trainer, actors and a recorder in this process, over a real broker."""

import contextlib

import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore
from agentlace.recorder import Recorder, Settings
from agentlace.recorder import attendance as attendance_module
from agentlace.rlds.reader import DatasetReader
from agentlace.transport import consumer as consumer_module
from agentlace.transport.channel import Channel
from tests.services.support import InThread, wait_until

CONFIG = TrainerConfig(5588, 5589)
NAME = "lab"


@pytest.fixture
def running():
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attendance_module, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(attendance_module, "LOOK_SHARE", 1)
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.2)
    monkeypatch.setattr(Channel, "slice_s", 0.1)


@pytest.fixture
def trainer(running, broker_url):
    def trainer(*stores, **retention):
        server = running(TrainerServer(CONFIG, broker=broker_url))
        for name in stores or ("env",):
            server.register_data_store(name, QueuedDataStore(100_000), **retention)
        server.start(threaded=True)
        return server

    return trainer


@pytest.fixture
def actor(running, broker_url):
    def actor(*stores, **kwargs):
        kwargs = {"timeout_ms": 20_000, "broker": broker_url} | kwargs
        found = {name: QueuedDataStore(100_000) for name in stores or ("env",)}
        client = running(TrainerClient("robot", "localhost", CONFIG, data_stores=found, **kwargs))
        client.stores = found
        return client

    return actor


class Recording:
    """A recorder that runs in a thread."""

    def __init__(self, recorder):
        self.recorder = recorder
        recorder.start()
        self._run = InThread(recorder.run)
        self._is_over = False

    @property
    def is_running(self):
        return self._run.is_running

    @property
    def counts(self):
        return self.recorder.status().counts

    def has(self, episodes):
        """Wait until so many entries are in the dataset."""
        wait_until(lambda: self.recorder.status().episodes >= episodes, what=f"{episodes} entries")
        return read(self.recorder)

    def outcome(self):
        """Return what the run raised by itself."""
        try:
            self._run.result()
        except Exception as error:
            return error

    def stop(self, **kwargs):
        """End it in order, and return what is in the dataset."""
        self.recorder.interrupt()
        self._run.result()
        self.recorder.stop(**kwargs)
        return read(self.recorder)


def read(recorder):
    return list(DatasetReader(recorder.directory).episodes())


@pytest.fixture
def record(running, broker_url, tmp_path):
    def record(*stores, start=True, **settings):
        settings = {"commit_every_s": 0.05, "abort_after_s": 30.0} | settings
        recorder = Recorder(
            *(stores or ("env",), tmp_path, NAME),
            port_number=CONFIG.port_number,
            broker=broker_url,
            settings=Settings(**settings),
        )
        running(contextlib.closing(Closing(recorder)))
        return Recording(recorder) if start else recorder

    return record


class Closing:
    def __init__(self, recorder):
        self.close = recorder.stop
