"""Connections: every failure has its error, and every connection comes back."""

import contextlib
import errno
import inspect
import logging
import os
import re
import signal
import socket
import ssl
import threading
import time
import traceback

import pytest
import redis
from transport_support import (
    DEADLINE_S,
    FakeServer,
    broker_at,
    channel_to,
    kill_clients,
    wait_until,
)

from agentlace import errors
from agentlace.config import BrokerURL
from agentlace.transport import channel as channel_module
from agentlace.transport import resp
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Passing, Refused, mapped
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.resp import ErrorReply
from tests.ports import free_port

PASSWORD = "geheim-7f3a"


def read_and_say(text):
    """Return a handler that answers whatever comes with the same bytes."""

    def handle(connection, stop):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(4096):
                    return
                connection.sendall(text)

    return handle


def stay_silent(connection, stop):
    stop.wait()


def call_fails(url, command=("PING",), timeout_s=0.4):
    with channel_to(url, connect_timeout_s=timeout_s) as channel:
        with pytest.raises(errors.AgentlaceError) as caught:
            channel.call(*command, timeout_s=timeout_s)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in repr(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def locked_broker():
    with EmbeddedBroker(Settings(port=free_port(), password=PASSWORD)) as embedded:
        yield embedded


def test_nothing_listens():
    url = f"redis://bob:{PASSWORD}@127.0.0.1:{free_port()}/3?ns=lab"
    error = call_fails(url)
    assert isinstance(error, errors.BrokerUnreachable)
    assert isinstance(error, ConnectionError)
    assert "refused" in error.reason
    assert error.url == url.replace(PASSWORD, "***")
    assert error.url in str(error)
    assert "agentlace broker" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"+OK\r\n$-3x\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
    ],
)
def test_not_a_broker(text):
    with FakeServer(read_and_say(text)) as server:
        error = call_fails(f"redis://:{PASSWORD}@127.0.0.1:{server.port}")
    assert isinstance(error, errors.BrokerUnreachable)
    assert str(server.port) in str(error)


def test_a_port_that_hangs_up():
    with FakeServer(lambda connection, stop: None) as server:
        error = call_fails(f"redis://127.0.0.1:{server.port}")
    assert isinstance(error, errors.BrokerUnreachable)


def test_a_silent_port():
    with FakeServer(stay_silent) as server:
        began = time.monotonic()
        error = call_fails(f"redis://:{PASSWORD}@127.0.0.1:{server.port}", timeout_s=0.2)
        assert time.monotonic() - began < DEADLINE_S
    assert isinstance(error, errors.BrokerUnreachable)


def test_unknown_host():
    error = call_fails(f"redis://:{PASSWORD}@no-such-host.invalid:6379")
    assert isinstance(error, errors.BrokerUnreachable)
    assert "no-such-host.invalid" in str(error)


def test_no_unix_socket(tmp_path):
    error = call_fails(f"unix://{tmp_path}/absent.sock")
    assert isinstance(error, errors.BrokerUnreachable)
    assert "absent.sock" in str(error)


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@", f"nobody:{PASSWORD}@"])
def test_wrong_or_no_password(locked_broker, login):
    error = call_fails(f"redis://{login}127.0.0.1:{locked_broker.settings.port}")
    assert isinstance(error, errors.BrokerAuthFailed)
    assert isinstance(error, PermissionError)
    assert "wrong" not in str(error).replace("wrong number", "")
    assert str(locked_broker.settings.port) in str(error)


def test_the_right_password(locked_broker):
    with channel_to(f"redis://:{PASSWORD}@127.0.0.1:{locked_broker.settings.port}") as channel:
        assert channel.call("PING") == b"PONG"


def test_a_password_where_none_is_set(broker_url):
    error = call_fails(broker_url.replace("//", f"//:{PASSWORD}@"))
    assert isinstance(error, errors.BrokerAuthFailed)
    assert "without any password configured" in str(error)


def test_a_command_that_this_user_may_not(locked_broker):
    port = locked_broker.settings.port
    with channel_to(f"redis://:{PASSWORD}@127.0.0.1:{port}") as channel:
        rules = ("on", ">pw", "~*", "+@all", "-get", "-client|id")
        channel.call("ACL", "SETUSER", "robot", *rules)
    error = call_fails(f"redis://robot:pw@127.0.0.1:{port}", ("GET", "key"))
    assert isinstance(error, errors.BrokerAuthFailed)
    assert "'get'" in str(error)


def test_the_password_is_in_no_text(caplog):
    caplog.set_level(logging.DEBUG)
    url = BrokerURL.parse(f"redis://bob:{PASSWORD}@127.0.0.1:{free_port()}")
    broker = broker_at(f"redis://bob:{PASSWORD}@127.0.0.1:{free_port()}")
    for thing in (url, broker, broker.channel(), Settings(password=PASSWORD)):
        assert PASSWORD not in repr(thing)
        assert PASSWORD not in str(thing)
    with contextlib.suppress(errors.BrokerUnreachable):
        broker.now_ms()
    assert PASSWORD not in caplog.text


REDIS_ERRORS = [
    kind
    for _, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == "redis.exceptions"
]
SOCKET_ERRORS = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(errno.EPIPE, "broken pipe"),
    TimeoutError("timed out"),
    OSError(errno.EHOSTUNREACH, "no route to host"),
    OSError(errno.EMFILE, "too many open files"),
    FileNotFoundError(errno.ENOENT, "no such file"),
    PermissionError(errno.EACCES, "permission denied"),
    socket.gaierror(socket.EAI_NONAME, "unknown name"),
    ssl.SSLError("wrong version number"),
    ssl.SSLCertVerificationError("self-signed certificate"),
    resp.ProtocolError("garbage"),
    UnicodeError("label too long"),
]
FOREIGN_ERRORS = [kind("1 127.0.0.1:1") for kind in REDIS_ERRORS] + SOCKET_ERRORS
URL = BrokerURL.parse(f"redis://:{PASSWORD}@host:1234")


@pytest.mark.parametrize("foreign", FOREIGN_ERRORS, ids=lambda error: type(error).__name__)
def test_every_foreign_error_is_mapped(foreign):
    error = mapped(foreign, URL)
    assert isinstance(error, errors.AgentlaceError)
    assert PASSWORD not in str(error)


@pytest.mark.parametrize("foreign", FOREIGN_ERRORS, ids=lambda error: type(error).__name__)
def test_no_foreign_error_escapes_while_connecting(foreign, monkeypatch):
    def fail(self):
        raise foreign

    monkeypatch.setattr(redis.Connection, "connect", fail)
    with channel_to(URL) as channel, pytest.raises(errors.AgentlaceError):
        channel.connect()


@pytest.mark.parametrize("foreign", SOCKET_ERRORS[:5] + SOCKET_ERRORS[-4:-1], ids=repr)
def test_no_foreign_error_escapes_while_talking(foreign, monkeypatch, broker_url):
    def fail(*_):
        raise foreign

    with channel_to(broker_url) as channel:
        assert channel.call("PING") == b"PONG"
        with monkeypatch.context() as patch:
            patch.setattr(resp, "write", fail)
            with pytest.raises(errors.BrokerUnreachable):
                channel.call("PING")
        with monkeypatch.context() as patch:
            patch.setattr(resp.ReplyReader, "read", fail)
            with pytest.raises(errors.BrokerUnreachable):
                channel.call("PING")
        assert channel.call("PING") == b"PONG"


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (ErrorReply("NOAUTH Authentication required."), errors.BrokerAuthFailed),
        (ErrorReply("WRONGPASS invalid username-password pair"), errors.BrokerAuthFailed),
        (ErrorReply("NOPERM User robot has no permissions"), errors.BrokerAuthFailed),
        (ErrorReply("OOM command not allowed"), errors.StoreFull),
        (ErrorReply("MISCONF Errors writing to the AOF file"), errors.StoreFull),
        (ErrorReply("LOADING the dataset in memory"), Passing),
        (ErrorReply("READONLY You can't write"), Passing),
        (ErrorReply("MASTERDOWN Link with MASTER is down"), Passing),
        (ErrorReply("NOREPLICAS Not enough good replicas to write."), Passing),
        (ErrorReply("UNBLOCKED force unblock from blocking operation"), Passing),
        (ErrorReply("CLUSTERDOWN The cluster is down"), Passing),
        (ErrorReply("TRYAGAIN Multiple keys request during rehashing of slot"), Passing),
        (ErrorReply("MOVED 3999 127.0.0.1:6381"), Passing),
        (ErrorReply("ASK 3999 127.0.0.1:6381"), Passing),
        (ErrorReply("CROSSSLOT Keys in request don't hash to the same slot"), Refused),
        (ErrorReply("WRONGTYPE Operation against a key"), Refused),
        (ErrorReply("ERR unknown command 'X', with args: 'author'"), Refused),
        (redis.AuthenticationError("x"), errors.BrokerAuthFailed),
        (redis.exceptions.NoPermissionError("x"), errors.BrokerAuthFailed),
        (redis.OutOfMemoryError("x"), errors.StoreFull),
        (redis.BusyLoadingError("x"), Passing),
        (redis.ReadOnlyError("x"), Passing),
        (redis.ResponseError("ERR DB index is out of range"), Refused),
        (redis.TimeoutError("x"), errors.BrokerUnreachable),
    ],
    ids=str,
)
def test_errors_have_their_kind(foreign, expected):
    assert type(mapped(foreign, URL)) is expected


def test_our_own_errors_pass():
    error = errors.EncodeError("a/b", "no")
    assert mapped(error, URL) is error


def test_calls_and_refusals(channel, namespace):
    key = f"{namespace}:key"
    assert channel.call("SET", key, b"\x00\r\n") == b"OK"
    assert bytes(channel.call("GET", key)) == b"\x00\r\n"
    assert channel.call("GET", f"{key}:absent") is None
    with pytest.raises(Refused) as caught:
        channel.call("LPUSH", key, "x")
    assert caught.value.code == "WRONGTYPE"
    ok, refusal, value = channel.exchange([("SET", key, 1), ("LPUSH", key, 1), ("GET", key)])
    assert ok == b"OK"
    assert isinstance(refusal, ErrorReply)
    assert bytes(value) == b"1"
    with pytest.raises(Refused):
        channel.checked([ok, refusal, value])
    assert channel.connects == 1


def test_a_channel_that_waits_for_a_server_that_is_gone_is_woken(own_broker):
    broker = Broker(BrokerURL.parse(str(own_broker.settings.url)))
    with contextlib.ExitStack() as stack:
        waiting, beating, newer = (
            stack.enter_context(contextlib.closing(broker.channel())) for _ in range(3)
        )
        waiting.connect()
        beating.connect()
        broker.meet(beating, time.monotonic())
        broker.meet(beating, time.monotonic())  # the same one: nothing happens
        assert waiting.call("PING") == b"PONG"
        failures = []

        def wait():
            try:
                waiting.exchange([("BLPOP", "never", "0")], 60)
            except errors.BrokerUnreachable as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        # What the server said before it was killed:
        broker._encounters._met[""] = (beating.server, b"run_id:another")
        beaten_s = time.monotonic()
        newer.connect()
        beating.disconnect()
        beating.connect()
        broker.meet(beating, beaten_s)
        thread.join(DEADLINE_S)
        assert failures
        assert newer.call("PING") == waiting.call("PING") == b"PONG"
        assert newer.connects == 1 and waiting.connects == 2


def test_a_command_that_cannot_be_packed_leaves_nothing_owed(broker_url):
    with channel_to(broker_url) as channel:
        assert channel.call("ECHO", "before") == b"before"
        with pytest.raises(UnicodeEncodeError):
            channel.call("ECHO", "\ud800")
        assert channel.call("ECHO", "after") == b"after"
        assert channel.connects == 1


def test_the_clock_is_the_brokers(broker, channel):
    seconds, micros = channel.call("TIME")
    there_ms = int(seconds) * 1000 + int(micros) / 1000
    assert 0 <= broker.clock_error_ms < 1000 * DEADLINE_S
    assert abs(broker.now_ms() - there_ms) < 1000 * DEADLINE_S
    assert broker.clock_error_ms > 0


def test_a_full_broker(own_broker):
    with channel_to(own_broker.settings.url) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(errors.StoreFull):
            channel.call("SET", "key", "value")


def test_a_replica_is_left(own_broker):
    """A failover made the server a replica: the connection is opened anew, by name."""
    with channel_to(own_broker.settings.url) as channel:
        channel.call("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(errors.BrokerUnreachable, match="READONLY"):
            channel.call("SET", "key", "value")
        assert not channel.is_connected
        channel.call("REPLICAOF", "NO", "ONE")
        assert channel.call("SET", "key", "value") == b"OK"


def family(channel):
    return channel._link.sock.family


def test_moves_to_the_unix_socket_of_its_machine(own_broker):
    broker = broker_at(own_broker.settings.url)
    with contextlib.closing(broker.channel()) as channel:
        assert channel.call("PING") == b"PONG"
        assert family(channel) == socket.AF_UNIX
    own_broker.settings.socket_path.unlink()
    with contextlib.closing(broker.channel()) as channel:
        assert channel.call("PING") == b"PONG"
        assert family(channel) == socket.AF_INET


def test_does_not_move_to_another_servers_socket(own_broker, embedded_broker):
    path = own_broker.settings.socket_path
    path.unlink()
    path.symlink_to(embedded_broker.settings.socket_path)
    with channel_to(own_broker.settings.url) as channel:
        assert f"process_id:{own_broker.pid}\r\n".encode() in bytes(channel.call("INFO"))
        assert family(channel) == socket.AF_INET


def test_stays_on_tcp_if_it_may_not_ask(own_broker):
    with channel_to(own_broker.settings.url) as channel:
        channel.call("ACL", "SETUSER", "robot", "on", ">pw", "~*", "+@all", "-config")
    url = str(own_broker.settings.url).replace("//", "//robot:pw@")
    with channel_to(url) as channel:
        assert channel.call("PING") == b"PONG"
        assert family(channel) == socket.AF_INET


def test_comes_back_after_a_kill(broker_url):
    with channel_to(broker_url) as channel, channel_to(broker_url) as killer:
        channel.connect()
        for n in range(2, 5):
            kill_clients(killer)
            with pytest.raises(errors.BrokerUnreachable):
                channel.call("PING")
            assert not channel.is_connected
            assert channel.call("PING") == b"PONG"
            assert channel.connects == n


@pytest.mark.parametrize("nbytes", [1, 5, 100, 70_000, 200_000])
def test_cut_in_the_middle_of_a_reply(proxy, proxy_url, namespace, nbytes):
    broker = broker_at(proxy_url, over_tcp=True)
    with contextlib.closing(broker.channel()) as channel:
        channel.call("SET", namespace, b"x" * 300_000)
        proxy.cut_after(nbytes)
        with pytest.raises(errors.BrokerUnreachable):
            channel.call("GET", namespace)
        assert len(channel.call("GET", namespace)) == 300_000


def test_a_broker_that_stops_answering(own_broker):
    with channel_to(own_broker.settings.url) as channel:
        channel.connect()
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            with pytest.raises(errors.BrokerUnreachable):
                channel.call("PING", timeout_s=0.2)
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        wait_until(lambda: _answers(channel))


def _answers(channel):
    with contextlib.suppress(errors.BrokerUnreachable):
        return channel.call("PING") == b"PONG"


def test_pauses_between_attempts_grow(monkeypatch):
    monkeypatch.setattr("agentlace.transport.backoff._RANDOM.uniform", lambda low, high: 1.0)
    backoff = Backoff(0.05, 1.0)
    assert [backoff.next_s() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_s() == 0.05


def test_a_broker_that_is_away_is_not_hammered():
    with FakeServer(lambda connection, stop: None) as server:
        with channel_to(f"redis://127.0.0.1:{server.port}") as channel:
            calls, deadline = 0, time.monotonic() + 0.5
            while time.monotonic() < deadline:
                with pytest.raises(errors.BrokerUnreachable) as caught:
                    channel.call("PING")
                calls += 1
        assert calls > server.accepted
        assert server.accepted <= 8  # pauses of 38 ms and more, each longer than the one before
        assert len(traceback.extract_tb(caught.value.__traceback__)) < 12


def test_close_wakes_a_reader(broker_url, namespace):
    with channel_to(broker_url) as channel:
        failures = []
        thread = threading.Thread(target=_block, args=(channel, namespace, failures))
        thread.start()
        wait_until(lambda: channel.is_connected)
        channel.close()
        thread.join(DEADLINE_S)
        assert [type(failure) for failure in failures] == [errors.Closed]
        with pytest.raises(errors.Closed):
            channel.call("PING")


def _block(channel, key, failures):
    try:
        channel.call("BLPOP", key, "30", timeout_s=40)
    except errors.AgentlaceError as error:
        failures.append(error)


@pytest.mark.parametrize(("how", "expected"), [("close", "Closed"), ("interrupt", "BrokerUnr")])
def test_interrupted_while_it_connects(proxy, proxy_url, namespace, how, expected):
    proxy.flows.clear()
    with contextlib.closing(broker_at(proxy_url, over_tcp=True).channel()) as channel:
        failures = []
        thread = threading.Thread(target=_block, args=(channel, namespace, failures))
        thread.start()
        wait_until(lambda: proxy.accepted)
        getattr(channel, how)()
        proxy.flows.set()
        thread.join(DEADLINE_S)
        assert [type(failure).__name__[:9] for failure in failures] == [expected[:9]]
        assert not channel.is_connected


def test_unblock_ends_a_blocking_command(broker_url, namespace):
    with channel_to(broker_url) as channel:
        channel.connect()
        replies = []
        thread = threading.Thread(
            target=lambda: replies.append(channel.call("BLPOP", namespace, "30", timeout_s=40))
        )
        thread.start()
        while thread.is_alive():  # it may come before the block
            channel.unblock()
            thread.join(0.02)
        assert replies == [None]
        assert channel.connects == 1


def test_ctrl_c_leaves_no_half_command(broker_url, namespace, monkeypatch):
    """What follows half a command would become a part of it."""

    def write_half(sock, buffers):
        sock.sendall(bytes(buffers[0])[:10])
        raise KeyboardInterrupt

    with channel_to(broker_url) as channel:
        channel.connect()
        with monkeypatch.context() as patch:
            patch.setattr(resp, "write", write_half)
            with pytest.raises(KeyboardInterrupt):
                channel.call("SET", namespace, "value")
        assert not channel.is_connected
        assert channel.call("GET", namespace) is None


def test_a_late_reply_is_not_taken_for_another(proxy, proxy_url, namespace):
    with contextlib.closing(broker_at(proxy_url, over_tcp=True).channel()) as channel:
        channel.connect()
        proxy.flows.clear()
        channel.send([("SET", namespace, "late"), ("GET", namespace)])
        for _ in range(3):
            with pytest.raises(errors.BrokerUnreachable, match=re.escape("no answer within")):
                channel.settle(0.01)
        proxy.flows.set()
        channel.settle(DEADLINE_S)
        assert channel.call("PING") == b"PONG"
        assert bytes(channel.call("GET", namespace)) == b"late"
        assert channel.connects == 1


def test_patience_ends(proxy, proxy_url, monkeypatch):
    monkeypatch.setattr(channel_module, "PATIENCE_S", 0.0)
    with contextlib.closing(broker_at(proxy_url, over_tcp=True).channel()) as channel:
        channel.connect()
        proxy.flows.clear()
        channel.send([("PING",)])
        with pytest.raises(errors.BrokerUnreachable):
            channel.settle(0.01)
        assert not channel.is_connected
        proxy.flows.set()
        assert channel.call("PING") == b"PONG"
