"""``agentlace rlds export`` as a program: its options, its ends, its words."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.config import BrokerURL
from agentlace.data import QueuedDataStore
from agentlace.rlds.reader import DatasetReader
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import consumers
from tests.recorder.support import row
from tests.services.support import Program, wait_until

CONFIG = TrainerConfig()
NAME = "lab"
LONG_S = 60.0
COMMAND = """
import sys
from agentlace.cli import main
try:
    sys.exit(main())
finally:
    assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""
SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
"""


@pytest.fixture
def running():
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def client(running, broker_url):
    server = running(TrainerServer(CONFIG, broker=broker_url))
    stores = {name: QueuedDataStore(100_000) for name in ("env", "demos")}
    for name in stores:
        server.register_data_store(name, QueuedDataStore(100_000))
    server.start(threaded=True)
    args = ("robot", "localhost", CONFIG)
    client = running(TrainerClient(*args, data_stores=stores, timeout_ms=20_000, broker=broker_url))
    client.stores = stores
    return client


@pytest.fixture
def export(running, broker_url, tmp_path):
    def export(*options, store="env", source=COMMAND, broker=broker_url, name=NAME):
        where = ("--store", store, "--name", name, "--data-dir", tmp_path / "data")
        return running(Program(source, "rlds", "export", *where, *options, broker=broker))

    return export


@pytest.fixture
def episodes(tmp_path):
    return lambda: list(DatasetReader(tmp_path / "data" / NAME / "1.0.0").episodes())


def send(client, first, count, store="env", **more):
    for n in range(first, first + count):
        client.stores[store].batch_insert([row(n, **more), row(n + 1, last=True, **more)])
    assert client.update()


def firsts(episodes):
    return [int(episode.steps[0]["reward"]) for episode in episodes]


def output(program):
    return "\n".join(program.lines)


def test_once(client, export, episodes, broker_url):
    send(client, 0, 5)
    send(client, 50, 2, store="demos")
    program = export("--once", store="env,demos")
    assert program.wait(LONG_S) == 0, output(program)
    assert sorted(firsts(episodes())) == [0, 1, 2, 3, 4, 50, 51]
    assert program.line("recording env, demos")
    assert program.line("7 episodes, 21 steps")
    sent = program.line("all").split()
    assert sent[1:3] == ["7", "7"]
    assert program.line("the streams are kept for recorder:lab")
    send(client, 90, 1)
    again = export("--once", "--forget", store="env,demos")
    assert again.wait(LONG_S) == 0, output(again)
    assert sorted(firsts(episodes())) == [0, 1, 2, 3, 4, 50, 51, 90]
    url = BrokerURL.parse(broker_url)
    keys = ServiceKeys(url.namespace, "trainer", CONFIG.port_number)
    with contextlib.closing(Broker(url).channel()) as channel:
        assert "recorder:lab" not in consumers(channel, keys.store("env"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_what_is_finished(client, export, episodes, number):
    """What is not stays in the stream."""
    program = export("--commit-every", 1000)
    program.line("recording", LONG_S)
    send(client, 0, 3)
    client.stores["env"].batch_insert([row(70), row(71)])
    assert client.update()
    program.line("0 behind", LONG_S)  # the first line of progress comes at once
    wait_until(lambda: _is_read(client))
    program.process.send_signal(number)
    assert program.wait(LONG_S) == 0, output(program)
    assert firsts(episodes()) == [0, 1, 2]
    assert program.line("2 transitions of episodes that are still open are kept")
    if number == signal.SIGINT:
        return
    client.stores["env"].batch_insert([row(72, last=True)])
    assert client.update()
    again = export("--once")
    assert again.wait(LONG_S) == 0, output(again)
    assert firsts(episodes()) == [0, 1, 2, 70]
    assert len(episodes()[-1].steps) == 4


def _is_read(client):
    """Whether the recorder has read all, as far as can be told from outside: it waits idly."""
    channel = client._stream_channel
    listed = bytes(channel.call("CLIENT", "LIST")).splitlines()
    return sum(b"cmd=xread" in line for line in listed) >= 3  # two of the trainer, one of it


@pytest.fixture
def small_disk(tmp_path):
    """Return a source that runs before the program and leaves it little room; and an end to that.

    A file system of half a megabyte, or, where none may be mounted, a limit of files' sizes.
    """
    folder = str(tmp_path / "data")
    os.mkdir(folder)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        yield SMALL_FILES, lambda: None
        return
    try:
        grow = ["mount", "-o", "remount,size=20m", folder]
        yield "", lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_it_and_nothing_is_lost(client, export, episodes, small_disk):
    source, make_room = small_disk
    for n in range(40):
        send(client, n, 1, noise=np.random.default_rng(n).normal(size=1500))
    program = export("--once", source=source + COMMAND)
    assert program.wait(LONG_S) == 1, output(program)
    (line,) = [line for line in program.lines if "agentlace: " in line]
    assert "the recording stops: no room for" in line
    assert "still in the streams: make room, and record again" in line
    assert "Traceback" not in output(program)
    make_room()
    again = export("--once")
    assert again.wait(LONG_S) == 0, output(again)
    assert firsts(episodes()) == list(range(40))


def test_a_difference_gives_a_status(client, export, episodes):
    send(client, 0, 2)
    client.stores["env"].insert(row(5, last=True, surprise=1))
    assert client.update()
    program = export("--once")
    assert program.wait(LONG_S) == 3, output(program)
    assert firsts(episodes()) == [0, 1]
    assert program.line("3 episodes were sent, and 2 are written: 1 do not fit")
    assert program.line("what does not fit is in")


def test_namespace_and_port(export, running, embedded_broker, episodes):
    bare = f"redis://127.0.0.1:{embedded_broker.settings.port}"
    namespace = f"n{os.getpid()}"
    config = TrainerConfig(port_number=5999)
    server = running(TrainerServer(config, broker=f"{bare}?ns={namespace}"))
    server.register_data_store("env", QueuedDataStore(10))
    server.start(threaded=True)
    queue = QueuedDataStore(10)
    args = ("env", "localhost", config, queue)
    client = running(TrainerClient(*args, broker=f"{bare}?ns={namespace}"))
    queue.insert(row(3, last=True))
    assert client.update()
    options = ("--once", "--namespace", namespace, "--trainer-port", 5999, "--broker", bare)
    program = export(*options, broker=None)
    assert program.wait(LONG_S) == 0, output(program)
    assert firsts(episodes()) == [3]


def test_mistakes_are_told_in_one_line(export):
    program = export("--once", "--broker", "redis://127.0.0.1:1")
    assert program.wait(LONG_S) == 1, output(program)
    assert program.line("no broker at redis://127.0.0.1:1")
    assert "Traceback" not in output(program)


def test_on_a_terminal(client, broker_url, tmp_path):
    """How it stands is drawn, and what came of it is left."""
    send(client, 0, 3)
    ours, theirs = pty.openpty()
    where = ("--store", "env", "--name", NAME, "--data-dir", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "agentlace", "rlds", "export", *where, "--broker", broker_url],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text, changed = [], threading.Event()

    def read():
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                text.append(data.decode(errors="replace"))
                changed.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_until(lambda: "3 episodes, 9 steps" in "".join(text), LONG_S, "a drawing")
        assert "behind" in "".join(text) and client.actor_id in "".join(text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == 0, "".join(text)
        wait_until(lambda: "quarantined" in "".join(text))
    finally:
        process.kill()
        process.wait()
        reader.join(LONG_S)
        os.close(ours)
