"""What a connection's socket is told to do."""

import contextlib
import os
import signal
import socket
import threading

import pytest

from agentlace import native
from agentlace.codec import Frame
from agentlace.transport import link as link_module
from agentlace.transport import spin as spin_module
from agentlace.transport.envelope import Envelope
from agentlace.transport.link import Link
from agentlace.transport.resp import ReplyReader
from agentlace.transport.spin import Habit

LONG_S = 60.0


@pytest.fixture(autouse=True, params=["compiled", "pure"])
def way(request, monkeypatch):
    """All of it holds for the compiled functions and for what takes their place."""
    if request.param == "pure":
        monkeypatch.setattr(native, "trade", None)
        monkeypatch.setattr(link_module, "spin", spin_module._spin)
    elif native.trade is None:
        pytest.skip("there is no compiled module here: no compiler, or AGENTLACE_PURE=1")
    return request.param


class Peer:
    """The broker's end of a link."""

    def __init__(self, sock):
        self.sock = sock

    def take(self, nbytes):
        data = b""
        while len(data) < nbytes:
            data += self.sock.recv(nbytes - len(data))
        return data


def envelope():
    return Envelope(("RPUSH", "requests"), (), ("BLPOP", "replies", "1"))


def sent_with(frame):
    return b"".join(map(bytes, envelope().packed(frame)))


def popped(value, pushed=1):
    return b":%d\r\n*2\r\n$7\r\nreplies\r\n$%d\r\n%b\r\n" % (pushed, len(value), value)


@contextlib.contextmanager
def linked():
    mine, theirs = socket.socketpair(socket.AF_UNIX)
    with mine, theirs:
        link = Link(mine, ReplyReader(mine), None, mine.close)
        link.habit = Habit()
        theirs.settimeout(LONG_S)
        yield link, Peer(theirs)


def frame_of(parts, size):
    return Frame([os.urandom(size) for _ in range(parts)], parts * size)


@pytest.mark.parametrize(
    ("parts", "size"), [(1, 0), (1, 100), (3, 40_000), (64, 1000), (65, 1000), (200, 3000)]
)
@pytest.mark.parametrize("answer", [0, 1, 300, 30_000, 300_000])
def test_what_is_traded_arrives_whole(parts, size, answer):
    frame, value = frame_of(parts, size), os.urandom(answer)
    wanted = sent_with(frame)
    with linked() as (link, peer):
        around = envelope()

        def serve():
            for _ in range(3):
                assert peer.take(len(wanted)) == wanted
                peer.sock.sendall(popped(value))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for _ in range(3):
            got = link.trade(around, frame, LONG_S)
            assert bytes(got) == value
            assert not memoryview(got).readonly
        thread.join(LONG_S)
        assert not link.reader.has_data


@pytest.mark.parametrize("first", [popped(b"xyz"), b""])
@pytest.mark.parametrize(
    ("answer", "replies"),
    [
        (b"-OOM no memory\r\n*-1\r\n", ["OOM", None]),
        (b":1\r\n*-1\r\n", [1, None]),
        (b":1\r\n-UNBLOCKED x\r\n", [1, "UNBLOCKED"]),
    ],
)
def test_what_looks_otherwise_is_left_to_be_read(first, answer, replies):
    frame, around = frame_of(1, 10), envelope()
    with linked() as (link, peer):
        if first:
            peer.sock.sendall(first)
            assert bytes(link.trade(around, frame, LONG_S)) == b"xyz"
        peer.sock.sendall(answer)
        assert link.trade(around, frame, LONG_S) is None
        got = [link.reader.read() for _ in replies]
        assert [getattr(reply, "code", reply) for reply in got] == replies


def test_an_answer_that_comes_in_pieces():
    frame, around, value = frame_of(1, 10), envelope(), b"v" * 100
    whole = popped(value)
    for cut in range(1, len(whole)):
        with linked() as (link, peer):
            peer.sock.sendall(whole[:cut])
            rest = threading.Timer(0.001, peer.sock.sendall, [whole[cut:]])
            rest.start()
            link.limit(LONG_S, 1)
            got = link.trade(around, frame, LONG_S)
            if got is None:  # it had not all come: then it is read reply by reply
                link.limit(LONG_S, 1)
                assert link.reader.read() == 1
                got = link.reader.read()[1]
            assert bytes(got) == value
            rest.join()


def test_an_end_and_a_silence_are_told_apart():
    frame, around = frame_of(1, 10), envelope()
    with linked() as (link, peer):
        with pytest.raises(BlockingIOError):
            link.trade(around, frame, 0.05)
        peer.sock.close()
        with pytest.raises(ConnectionError):
            link.trade(around, frame, LONG_S)


def test_an_end_while_answers_were_quick():
    frame, around = frame_of(1, 10), envelope()
    with linked() as (link, peer):
        link.habit.note(0.0)
        peer.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            link.trade(around, frame, LONG_S)


class Interrupted(Exception):
    pass


def test_a_signal_interrupts_what_waits():
    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with linked() as (link, _):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                link.trade(envelope(), frame_of(1, 10), LONG_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_raises_nothing_interrupts_nothing():
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with linked() as (link, peer):
            answer = threading.Timer(0.15, peer.sock.sendall, [popped(b"xyz")])
            answer.start()
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            assert bytes(link.trade(envelope(), frame_of(1, 10), LONG_S)) == b"xyz"
            answer.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_closed_socket_is_an_error_and_not_somebody_elses_file():
    with linked() as (link, _):
        link.sock.close()
        with pytest.raises(OSError):
            link.trade(envelope(), frame_of(1, 10), LONG_S)


@pytest.fixture
def looks(monkeypatch):
    """How often it was looked for an answer before sleeping."""
    looked = []
    real = link_module.spin
    monkeypatch.setattr(link_module, "spin", lambda *args: (looked.append(args), real(*args)))
    monkeypatch.setattr(native, "trade", None)
    return looked


def test_only_who_has_the_habit_looks(looks):
    frame, around = frame_of(1, 10), envelope()
    with linked() as (link, peer):
        for habit, micros, expected in ((Habit(), 0, 0), (Habit(), 7, 1), (None, 7, 1)):
            link.habit = habit
            if habit is not None:
                habit.micros = micros
            peer.sock.sendall(popped(b"xyz"))
            link.trade(around, frame, LONG_S)
            assert [args[1:] for args in looks] == [(9, 7)] * expected


QUICK_S, DOUBTFUL_S, SLOW_S = (part * spin_module.SPIN_S for part in (0.5, 1.5, 2.5))


@pytest.mark.skipif(not spin_module.SPIN_US, reason="one core: nobody looks")
def test_the_habit_follows_the_answers():
    habit = Habit()
    assert not habit.micros
    habit.note(SLOW_S)
    assert not habit.micros
    habit.note(DOUBTFUL_S)  # perhaps it would have been quick, had nobody slept
    assert habit.micros
    habit.note(DOUBTFUL_S)  # no
    for _ in range(spin_module.RESTS):
        assert not habit.micros
        habit.note(DOUBTFUL_S)
        habit.note(SLOW_S)
    habit.note(DOUBTFUL_S)
    assert habit.micros
    habit.note(DOUBTFUL_S)
    assert not habit.micros
    habit.note(QUICK_S)
    assert habit.micros
    habit.note(QUICK_S)
    assert habit.micros


def test_spinning_ends_when_enough_has_come():
    mine, theirs = socket.socketpair(socket.AF_UNIX)
    with mine, theirs:
        theirs.sendall(b"123456789")
        link_module.spin(mine.fileno(), 9, int(1e6 * LONG_S))
        assert mine.recv(100) == b"123456789"
        link_module.spin(mine.fileno(), 1, 1000)  # and when the time is over


@pytest.mark.parametrize(
    ("told", "cores", "expected"),
    [("", 8, 500), ("0", 8, 0), ("50", 8, 50), ("a lot", 8, 500), ("-1", 8, 500), ("50", 1, 0)],
)
def test_how_long_to_spin_is_a_setting(told, cores, expected, monkeypatch):
    monkeypatch.setenv("AGENTLACE_SPIN_US", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert spin_module._setting() == expected


def test_over_tcp_the_rest_of_a_reply_wakes_its_reader():
    """A kernel that is to wait for more, and has handed out a part, may sleep through the rest."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with mine, theirs:
        link = Link(mine, ReplyReader(mine), None, mine.close)
        link.limit(LONG_S, len(b":1\r\n:0\r\n*-1\r\n"))
        theirs.sendall(b":1\r\n:0\r\n")
        replies, began = [], threading.Event()

        def read():
            began.set()
            replies.extend(link.reader.read() for _ in range(3))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        began.wait(LONG_S)
        thread.join(0.2)  # it takes what there is
        theirs.sendall(b"*-1\r\n")
        thread.join(LONG_S / 3)
        assert replies == [1, 0, None]
