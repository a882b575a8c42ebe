"""Requests: at most once, in time, and answered whatever happens in between."""

import contextlib
import itertools
import logging
import os
import shutil
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from transport_support import DEADLINE_S, broker_at, channel_to, kill_clients, wait_until

from agentlace import codec
from agentlace.errors import (
    BrokerUnreachable,
    Closed,
    EncodeError,
    RemoteError,
    RequestTimeout,
    StoreFull,
    UnknownRequest,
)
from agentlace.transport import remembered, request_server
from agentlace.transport.connection import Broker
from agentlace.transport.requests import RequestClient, RequestServer, Ticket

LONG_S = DEADLINE_S


class Handler:
    """A handler that keeps what it was asked, and waits while it is held."""

    def __init__(self):
        self.calls = []
        self.free = threading.Event()
        self.free.set()
        self.answer = lambda what, name, payload: payload

    def __call__(self, what, name, payload):
        self.calls.append((what, name, payload))
        assert self.free.wait(LONG_S)
        return self.answer(what, name, payload)

    @contextlib.contextmanager
    def held(self):
        self.free.clear()
        try:
            yield
        finally:
            self.free.set()


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture
def start(broker, keys):
    """Return a function that starts servers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(handler, token="token", at=None):
            server = RequestServer(at or broker, keys, handler, token)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def server(start, handler):
    return start(handler)


@pytest.fixture
def client(broker, keys):
    with contextlib.closing(RequestClient(broker, keys, lambda: "token")) as client:
        yield client


def in_thread(function, *args):
    """Run a call in a thread; returns a function that waits for its result or error."""
    results = []

    def run():
        try:
            results.append(function(*args))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(LONG_S)
        return results[0]

    return result


@pytest.mark.parametrize("what", ["act", "obs", "call", "request"])
def test_round_trip(server, client, handler, what):
    payload = {"image": np.arange(100_000, dtype=np.uint8), "keys": {"a", "b"}, "pose": (1, 2.5)}
    reply = client.call(what, "name", payload, LONG_S)
    np.testing.assert_array_equal(reply["image"], payload["image"])
    assert reply["keys"] == {"a", "b"}
    assert reply["pose"] == (1, 2.5)
    assert [call[:2] for call in handler.calls] == [(what, "name")]
    assert server.answered == 1


@pytest.mark.parametrize("nbytes", [0, 1, 30_000, 70_000, 5 << 20])
def test_sizes(server, client, nbytes):
    data = np.random.default_rng(0).bytes(nbytes)
    assert client.call("call", "echo", data, LONG_S) == data


def test_one_after_the_other(server, client):
    assert [client.call("act", "n", n, LONG_S) for n in range(200)] == list(range(200))


def test_nothing_is_left_in_the_broker(server, client, channel, keys):
    client.call("act", "key", 1, LONG_S)
    assert channel.call("EXISTS", keys.requests, client._reply_key) == 0


def test_what_failed_is_counted_when_it_has(server, client, handler):
    with handler.held():
        waiting = in_thread(client.call, "act", "a", 1, LONG_S)
        wait_until(lambda: handler.calls)
        assert (client.made, client.failed) == (1, 0)  # it is on its way
    assert waiting() == 1
    assert client.failed == 0
    handler.answer = lambda what, name, payload: {}[payload]
    with pytest.raises(RemoteError):
        client.call("act", "a", 1, LONG_S)
    with pytest.raises(RequestTimeout):
        client.call("act", "a", 1, 0.0)
    assert (client.made, client.failed) == (3, 2)


def test_an_unread_reply_expires(server, client, handler, channel, keys):
    with handler.held():
        time_out(client, handler, "act", 1, client.ticket())
    wait_until(lambda: channel.call("EXISTS", client._reply_key))
    assert 0 < channel.call("PTTL", client._reply_key) <= request_server.REPLY_MS


def test_a_handler_that_raises(server, client, handler, caplog):
    def fail(what, name, payload):
        raise FileNotFoundError(f"no {name}")

    handler.answer = fail
    with pytest.raises(RemoteError, match="FileNotFoundError: no grip") as caught:
        client.call("act", "grip", 1, LONG_S)
    assert caught.value.type == "FileNotFoundError"
    assert "Traceback" in caplog.text
    handler.answer = lambda *_: "fine"
    assert client.call("act", "grip", 1, LONG_S) == "fine"


@pytest.mark.parametrize(
    "message",
    ["\ud800 lone surrogate", "x" * 100_000, "", "\x00"],
    ids=["surrogate", "long", "empty", "zero"],
)
def test_any_message_travels(server, client, handler, message):
    def fail(*_):
        raise RuntimeError(message)

    handler.answer = fail
    with pytest.raises(RemoteError) as caught:
        client.call("act", "key", 1, LONG_S)
    assert len(caught.value.message) <= 4000
    assert client.call.__name__ == "call"


def test_an_unknown_request(server, client, handler):
    def fail(*_):
        raise UnknownRequest("no such key")

    handler.answer = fail
    with pytest.raises(UnknownRequest, match="no such key"):
        client.call("act", "key", 1, LONG_S)


def test_a_reply_that_may_not_travel(server, client, handler):
    handler.answer = lambda *_: {"a": [object()]}
    with pytest.raises(RemoteError, match=r"may not travel.*a/0") as caught:
        client.call("act", "key", 1, LONG_S)
    assert caught.value.type == "EncodeError"
    handler.answer = lambda *_: 1
    assert client.call("act", "key", 1, LONG_S) == 1


def test_a_payload_that_may_not_travel(server, client, handler):
    with pytest.raises(EncodeError):
        client.call("act", "key", {"a": object()}, LONG_S)
    assert client.call("act", "key", 1, LONG_S) == 1
    assert len(handler.calls) == 1


def test_a_handler_may_stop_its_server(start, client):
    server = start(lambda *_: server.stop() or "bye")
    assert client.call("act", "key", 1, LONG_S) == "bye"
    wait_until(lambda: not server._thread.is_alive())


def test_without_a_server_it_is_withdrawn(client, start, handler, channel, keys):
    with pytest.raises(RequestTimeout, match="was withdrawn and will not be executed") as caught:
        client.call("act", "key", 1, 0.1)
    assert caught.value.started is False
    assert caught.value.timeout_s == 0.1
    assert channel.call("LLEN", keys.requests) == 0
    start(handler)
    assert client.call("act", "key", 2, LONG_S) == 2
    assert [payload for *_, payload in handler.calls] == [2]


def test_a_request_behind_a_slow_one_expires(server, client, broker, keys, handler, caplog):
    with contextlib.closing(RequestClient(broker, keys)) as other:
        with handler.held():
            slow = in_thread(client.call, "act", "slow", 1, LONG_S)
            wait_until(lambda: handler.calls)
            with pytest.raises(RequestTimeout) as caught:
                other.call("act", "late", 2, 0.1)
        assert caught.value.started is False
        assert slow() == 1
        assert other.call("act", "again", 3, LONG_S) == 3
    assert [name for _, name, _ in handler.calls] == ["slow", "again"]


def test_an_expired_request_is_dropped(broker, start, keys, handler, channel, caplog):
    """Its caller was killed before it could take it back."""
    push_request(broker, channel, keys, deadline_ms=-1)
    push_request(broker, channel, keys, deadline_ms=1000 * LONG_S, name="good")
    server = start(handler)
    wait_until(lambda: handler.calls)
    assert [name for _, name, _ in handler.calls] == ["good"]
    assert server.expired == 1
    assert "after its deadline" in caplog.text


GOOD_META = {"what": "act", "name": "key", "run": "", "repeats": None}
CALLER = b"sixteen bytes id"


def push_request(broker, channel, keys, deadline_ms, stamp=None, **changes):
    meta = GOOD_META | changes
    if stamp is None:
        stamp = struct.pack("<Qd16s", 1, broker.now_ms() + deadline_ms, CALLER)
    channel.call("RPUSH", keys.requests, codec.encode_stamped("request", meta, stamp, None))


def time_out(client, handler, what, payload, ticket):
    """Call a handler that is held until it has begun with it; returns the last call's error."""
    while True:
        with pytest.raises(RequestTimeout) as caught:
            client.call(what, "key", payload, 0.1, ticket)
        if handler.calls:
            return caught.value


def test_one_that_had_begun_is_reported(server, client, handler, caplog):
    with handler.held():
        error = time_out(client, handler, "act", 1, client.ticket())
        late = time.monotonic() + 0.1
        wait_until(lambda: time.monotonic() > late)
    assert error.started is True
    assert "may still be executing" in str(error)
    wait_until(lambda: "was finished" in caplog.text)
    handler.answer = lambda what, name, payload: payload
    assert client.call("act", "key", 2, LONG_S) == 2  # not the reply to the first


def test_waiting_for_another_thread_counts(server, client, handler):
    with handler.held():
        slow = in_thread(client.call, "act", "slow", 1, LONG_S)
        wait_until(lambda: handler.calls)
        with pytest.raises(RequestTimeout) as caught:
            client.call("act", "late", 2, 0.05)
        assert caught.value.started is False
    assert slow() == 1
    assert len(handler.calls) == 1


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e-9])
def test_no_time_at_all(server, client, timeout_s):
    with pytest.raises(RequestTimeout):
        client.call("act", "key", 1, timeout_s)
    assert client.call("act", "key", 2, LONG_S) == 2


@pytest.mark.parametrize("what", ["act", "request"])
def test_a_repeated_ticket_is_answered_from_memory(server, client, handler, what):
    ticket = client.ticket()
    with handler.held():
        time_out(client, handler, what, "first", ticket)
    assert client.call(what, "key", "again", LONG_S, ticket) == "first"
    assert client.call(what, "key", "again", LONG_S, ticket) == "first"
    assert len(handler.calls) == 1


def test_what_is_remembered_does_not_change(server, client, handler):
    array = np.zeros(100_000)
    handler.answer = lambda *_: array
    ticket = client.ticket()
    first = client.call("act", "key", None, LONG_S, ticket)
    array[:] = 1
    np.testing.assert_array_equal(client.call("act", "key", None, LONG_S, ticket), first)


def test_a_ticket_is_remembered_though_other_requests_came_between(server, client, handler):
    ticket = client.ticket()
    assert client.call("act", "key", "first", LONG_S, ticket) == "first"
    for n in range(remembered.REMEMBERED_REPLIES - 1):
        assert client.call("act", "other", n, LONG_S) == n
    assert client.call("act", "key", "again", LONG_S, ticket) == "first"
    assert [payload for *_, payload in handler.calls] == ["first", 0, 1, 2]


def test_a_frozen_broker_holds_up_a_caller_no_longer_than_it_asked(own_broker, keys):
    """Each step of a call (connecting anew, too) could take its own five seconds."""
    client = RequestClient(Broker(own_broker.settings.url), keys, lambda: "token")
    with contextlib.closing(client), contextlib.closing(Broker(own_broker.settings.url).channel()):
        with pytest.raises(RequestTimeout):
            client.call("obs", "", None, 0.01)
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(5):
                with pytest.raises((RequestTimeout, BrokerUnreachable)):
                    client.call("obs", "", None, 0.1)
            assert time.monotonic() - began < DEADLINE_S
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)


def test_a_ticket_whose_request_was_withdrawn_is_as_good_as_new(client, start, handler):
    ticket = client.ticket()
    for _ in range(2):
        with pytest.raises(RequestTimeout) as caught:
            client.call("act", "key", 1, 0.05, ticket)
        assert caught.value.started is False
        assert not ticket.sent
    start(handler, token="a new server")
    assert client.call("act", "key", 1, LONG_S, ticket) == 1


def test_a_restarted_server_refuses_a_repetition(server, client, start, handler, channel):
    ticket = client.ticket()
    with handler.held():
        time_out(client, handler, "act", 1, ticket)
    server.stop()
    channel.call("DEL", client._reply_key)  # it was killed before it could answer
    start(handler, token="another")
    with pytest.raises(RemoteError, match="may have been executed") as caught:
        client.call("act", "key", 1, LONG_S, ticket)
    assert caught.value.type == "ServerRestarted"
    assert len(handler.calls) == 1
    assert client.call("act", "key", 2, LONG_S, client.ticket()) == 2  # a new one is executed


def test_a_repetition_of_one_sent_to_nobody_known_is_refused(client, start, handler):
    start(handler, token="some server")
    with pytest.raises(RemoteError, match="ServerRestarted"):
        client.call("act", "key", 1, LONG_S, Ticket(1, None, sent=True))
    assert not handler.calls


def test_pure_calls_may_be_repeated(client, start, handler):
    start(handler, token="another")
    assert client.call("obs", "key", 1, LONG_S, Ticket(1, "token", sent=True)) == 1


def test_only_the_last_callers_are_remembered(server, broker, keys, monkeypatch):
    monkeypatch.setattr(remembered, "REMEMBERED_CALLERS", 3)
    for n in range(6):
        with contextlib.closing(RequestClient(broker, keys)) as client:
            client.call("act", "key", n, LONG_S)
    assert len(server._remembered.callers) == 3


def test_act_survives_lost_connections(broker_url, keys):
    """The connections of both ends are cut all the time: every act is executed once."""
    executed = []
    broker = broker_at(broker_url)
    server = RequestServer(broker, keys, lambda w, n, payload: executed.append(payload), "token")
    stop = threading.Event()

    def kill():
        with channel_to(broker_url) as channel:
            while not stop.wait(0.02):
                kill_clients(channel)

    killer = threading.Thread(target=kill)
    with contextlib.closing(RequestClient(broker, keys, lambda: "token")) as client:
        server.start()
        killer.start()
        outcomes = [_outcome(client, n) for n in range(80)]
        stop.set()
        killer.join()
        server.stop()
    assert len(executed) == len(set(executed))
    answered = [n for n, outcome in enumerate(outcomes) if outcome == "answered"]
    withdrawn = [n for n, outcome in enumerate(outcomes) if outcome is False]
    assert set(answered) <= set(executed)
    assert not set(withdrawn) & set(executed)
    assert len(answered) > 40


def _outcome(client, n):
    try:
        client.call("act", "key", n, 0.5)
        return "answered"
    except RequestTimeout as error:
        return error.started
    except BrokerUnreachable:
        return None


def test_cut_while_a_handler_runs(proxy, proxy_url, broker_url, keys, handler):
    """The request is sent again under its identity, and answered from memory."""
    server = RequestServer(broker_at(broker_url), keys, handler, "token")
    server.start()
    caller = RequestClient(broker_at(proxy_url, over_tcp=True), keys, lambda: "token")
    with contextlib.closing(caller):
        with handler.held():
            result = in_thread(caller.call, "act", "key", "value", LONG_S)
            wait_until(lambda: handler.calls)
            proxy.cut()
            with channel_to(broker_url) as channel:
                wait_until(lambda: channel.call("LLEN", keys.requests))
        assert result() == "value"
        assert len(handler.calls) == 1
        server.stop()


def test_what_an_earlier_copy_does_is_not_denied(proxy, proxy_url, broker_url, keys, handler):
    """The copy that was sent after a cut is withdrawn, but the first is being executed."""
    server = RequestServer(broker_at(broker_url), keys, handler, "token")
    server.start()
    caller = RequestClient(broker_at(proxy_url, over_tcp=True), keys, lambda: "token")
    with contextlib.closing(caller), handler.held():
        result = in_thread(caller.call, "act", "key", "value", 2.0)
        wait_until(lambda: handler.calls)
        proxy.cut()
        error = result()
    server.stop()
    assert isinstance(error, RequestTimeout)
    assert error.started is None


def test_cut_after_the_reply_was_sent(proxy, proxy_url, broker_url, keys, handler):
    server = RequestServer(broker_at(broker_url), keys, handler, "token")
    server.start()
    caller = RequestClient(broker_at(proxy_url, over_tcp=True), keys, lambda: "token")
    with contextlib.closing(caller):
        assert caller.call("act", "key", 1, LONG_S) == 1
        proxy.flows.clear()
        result = in_thread(caller.call, "act", "key", 2, LONG_S)
        wait_until(lambda: server.answered == 2)
        proxy.cut()
        proxy.flows.set()
        assert result() == 2
    server.stop()
    assert [payload for *_, payload in handler.calls] == [1, 2]


def test_the_broker_restarts(own_broker, keys, handler):
    broker = broker_at(own_broker.settings.url)
    server = RequestServer(broker, keys, handler, "token")
    server.start()
    with contextlib.closing(RequestClient(broker, keys, lambda: "token")) as client:
        assert client.call("act", "key", 1, LONG_S) == 1
        own_broker.stop()
        with pytest.raises(BrokerUnreachable):
            client.call("act", "key", 2, 0.1)
        own_broker.start()
        assert client.call("act", "key", 3, LONG_S) == 3
    server.stop()


def test_what_was_executed_is_not_executed_again_from_an_older_broker(own_broker, keys, handler):
    """Power cut: the broker comes back with a request that was taken, and answered, since."""
    data = Path(own_broker.settings.directory)
    broker = broker_at(own_broker.settings.url)
    with contextlib.closing(RequestClient(broker, keys, lambda: "token")) as client:
        answer = in_thread(client.call, "act", "key", 1, LONG_S)
        wait_until(lambda: any(b"RPUSH" in log.read_bytes() for log in data.rglob("*.incr.aof")))
        shutil.copytree(data, data.with_name("older"))
        server = RequestServer(broker, keys, handler, "token")
        server.start()
        assert answer() == 1
        later = list(range(2, 2 + 2 * remembered.REMEMBERED_REPLIES))
        assert [client.call("act", "key", n, LONG_S) for n in later] == later
        os.kill(own_broker.pid, signal.SIGKILL)
        own_broker.wait()
        shutil.rmtree(data)
        data.with_name("older").rename(data)
        own_broker.start()
        with channel_to(own_broker.settings.url) as channel:

            def refusals():
                replies = channel.call("LRANGE", client._reply_key, 0, -1)
                return [reply for reply in replies if b"BrokerRestarted" in bytes(reply)]

            wait_until(refusals)
        assert client.call("act", "key", 99, LONG_S) == 99
    assert [payload for *_, payload in handler.calls] == [1, *later, 99]
    server.stop()


def test_a_full_broker(own_broker, keys, handler):
    """A request or reply that finds no room fails; the server serves on when there is some."""
    broker = broker_at(own_broker.settings.url)
    server = RequestServer(broker, keys, handler, "token")
    server.start()
    with (
        contextlib.closing(RequestClient(broker, keys, lambda: "token")) as client,
        channel_to(own_broker.settings.url) as channel,
    ):
        ticket = client.ticket()

        def fill(*_):
            channel.call("CONFIG", "SET", "maxmemory", "1")
            return "done"

        handler.answer = fill
        with pytest.raises(RequestTimeout) as caught:
            client.call("act", "key", 1, 0.5, ticket)
        assert caught.value.started
        began = time.monotonic()
        with pytest.raises(StoreFull):
            client.call("act", "key", 2, LONG_S)
        assert time.monotonic() - began < LONG_S
        channel.call("CONFIG", "SET", "maxmemory", "0")
        assert client.call("act", "key", 1, LONG_S, ticket) == "done"
    server.stop()
    assert len(handler.calls) == 1


def test_several_threads_of_one_client(server, client):
    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda n: client.call("act", "n", n, LONG_S), range(60))
        assert list(replies) == list(range(60))


def test_several_clients(server, broker, keys):
    def calls(start):
        with contextlib.closing(RequestClient(broker, keys)) as client:
            return [client.call("act", "n", start + n, LONG_S) for n in range(20)]

    with ThreadPoolExecutor(5) as pool:
        found = list(itertools.chain(*pool.map(calls, range(0, 100, 20))))
    assert found == list(range(100))
    assert server.answered == 100


def test_several_servers_share_the_work(start, broker, keys):
    barrier = threading.Barrier(3)

    def handle(what, name, payload):
        barrier.wait(LONG_S)  # only passes if three servers work at the same time
        return payload

    servers = [start(handle, token=str(n)) for n in range(3)]

    def call(n):
        with contextlib.closing(RequestClient(broker, keys)) as client:
            return client.call("call", "policy", n, LONG_S)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(call, range(3))) == [0, 1, 2]
    wait_until(lambda: [server.answered for server in servers] == [1, 1, 1])


def test_garbage_is_ignored(start, client, broker, keys, channel, handler, caplog):
    channel.call("RPUSH", keys.requests, b"", b"garbage", codec.encode([1, 2], "reply"))
    for tree in (None, [], [1, 2], [np.zeros(32)], [np.zeros(32, np.uint8)], [np.zeros(32), None]):
        channel.call("RPUSH", keys.requests, codec.encode(tree, "request", GOOD_META))
    channel.call("RPUSH", keys.requests, codec.encode_stamped("request", {}, bytes(32), None))
    for changes in (
        {"what": ["act"]},
        {"name": None},
        {"repeats": 1},
        {"run": None},
        {"stamp": b""},
        {"stamp": bytes(31)},
        {"stamp": bytes([0, 0, 0, 0, 0, 0, 0xF8, 0x7F]) * 4},  # its deadline is no number
    ):
        push_request(broker, channel, keys, 1000 * LONG_S, **changes)
    server = start(handler)
    assert client.call("act", "key", 1, LONG_S) == 1
    assert len(handler.calls) == 1
    assert server.unreadable == 16
    assert caplog.text.count("dropped a request that it cannot read") == 1
    assert server.expired == 1


def test_a_key_of_another_type(start, client, channel, keys, handler, caplog):
    channel.call("SET", keys.requests, "not a list")
    server = start(handler)
    wait_until(lambda: "WRONGTYPE" in caplog.text)
    channel.call("DEL", keys.requests)
    assert client.call("act", "key", 1, LONG_S) == 1
    server.stop()


def test_stop_lets_the_running_call_finish(server, client, handler):
    with handler.held():
        result = in_thread(client.call, "act", "key", 1, LONG_S)
        wait_until(lambda: handler.calls)
        stopping = in_thread(server.stop)
        wait_until(server._stop.is_set)
    assert result() == 1
    assert stopping() is None
    assert not server._thread.is_alive()
    with pytest.raises(RequestTimeout) as caught:
        client.call("act", "key", 2, 0.1)
    assert caught.value.started is False


def test_stop_loses_no_request(broker, keys, client):
    """What it takes while it stops is answered; what it does not take is withdrawn."""
    outcomes = set()
    for n in range(30):
        handled = []
        server = RequestServer(broker, keys, lambda w, n, p, h=handled: h.append(p) or p, "token")
        server.start()
        wait_until(lambda server=server: server._channel.is_connected)
        result = in_thread(client.call, "act", "key", n, 0.1)
        threading.Event().wait(n / 10_000)  # so that stop comes earlier or later
        server.stop()
        outcome = result()
        if isinstance(outcome, RequestTimeout):
            assert (outcome.started, handled) in ((False, []), (True, [n]))  # 0.1 s may be short
        else:
            assert (outcome, handled) == (n, [n])
        outcomes.add(type(outcome))
    assert int in outcomes


def test_stop_is_quick_and_idempotent(start, handler):
    server = start(handler)
    began = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - began < request_server.JOIN_TIMEOUT_S
    assert not server._thread.is_alive()
    assert not server._channel.is_connected


def test_run_in_the_callers_thread(broker, keys, client, handler):
    server = RequestServer(broker, keys, handler, "token")
    thread = threading.Thread(target=server.run)
    thread.start()
    assert client.call("act", "key", 1, LONG_S) == 1
    server.stop()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert not server._channel.is_connected


def test_stop_while_the_broker_is_away(own_broker, keys, handler, caplog):
    server = RequestServer(broker_at(own_broker.settings.url), keys, handler, "token")
    server.start()
    wait_until(lambda: server._channel.is_connected)
    own_broker.stop()
    wait_until(lambda: "waits for the broker" in caplog.text)
    server.stop()
    assert not server._thread.is_alive()


def test_close_ends_a_waiting_call(client):
    result = in_thread(client.call, "act", "key", 1, LONG_S)
    wait_until(lambda: client._channel.is_connected)
    client.close()
    assert isinstance(result(), Closed)
    with pytest.raises(Closed):
        client.call("act", "key", 1, 1.0)


def test_reset_connects_anew(server, client):
    client.call("act", "key", 1, LONG_S)
    client.reset()
    assert client.call("act", "key", 2, LONG_S) == 2
    assert client._channel.connects == 2


def test_it_waits_for_a_broker_that_is_away(own_broker, keys, handler, caplog):
    caplog.set_level(logging.WARNING)
    own_broker.stop()
    broker = broker_at(own_broker.settings.url)
    server = RequestServer(broker, keys, handler, "token")
    server.start()
    with contextlib.closing(RequestClient(broker, keys)) as client:
        result = in_thread(client.call, "obs", "key", 1, LONG_S)
        own_broker.start()
        assert result() == 1
    server.stop()
