"""The wire protocol: replies however they are cut, commands however large."""

import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_support import channel_to

from agentlace.codec import Frame, decode, encode
from agentlace.pool import _CAN_COUNT
from agentlace.transport.resp import (
    MAX_ITEMS,
    READ_BYTES,
    ErrorReply,
    ProtocolError,
    ReplyReader,
    pack,
    write,
)

REPLIES = (
    b"+OK\r\n:-42\r\n$-1\r\n$0\r\n\r\n$5\r\na\r\nbc\r\n*-1\r\n*0\r\n"
    b"*3\r\n$1\r\nx\r\n*2\r\n:1\r\n$-1\r\n-ERR no such key\r\n-WRONGPASS\r\n+last\r\n"
)
EXPECTED = [
    b"OK",
    -42,
    None,
    b"",
    b"a\r\nbc",
    None,
    [],
    [b"x", [1, None], "ERR no such key"],
    "WRONGPASS",
    b"last",
]


class Wire:
    """A socket that gives its bytes in pieces of given sizes."""

    def __init__(self, data, sizes):
        self._data = memoryview(bytes(data))
        self._sizes = iter(sizes)

    def recv_into(self, buffer):
        count = min(next(self._sizes, len(buffer)), len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def plain(reply):
    """Return a reply in values that can be compared."""
    if isinstance(reply, ErrorReply):
        return str(reply)
    if isinstance(reply, list):
        return [plain(item) for item in reply]
    return bytes(reply) if isinstance(reply, (bytearray, memoryview)) else reply


def read_all(data, sizes, count):
    reader = ReplyReader(Wire(data, sizes))
    return [plain(reader.read()) for _ in range(count)]


def bulk(data):
    return b"$%d\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("split", range(len(REPLIES) + 1))
def test_split_at_every_byte(split):
    assert read_all(REPLIES, [split or len(REPLIES)], len(EXPECTED)) == EXPECTED


def test_byte_by_byte():
    assert read_all(REPLIES, [1] * len(REPLIES), len(EXPECTED)) == EXPECTED


def test_error_replies_have_a_code():
    reply = ReplyReader(Wire(b"-NOAUTH Authentication required.\r\n", [])).read()
    assert reply.code == "NOAUTH"
    assert str(reply) == "NOAUTH Authentication required."


SIZES = sorted(
    {size + delta for size in (0, READ_BYTES // 2, READ_BYTES, 1 << 20) for delta in range(-3, 4)}
    - {-3, -2, -1}
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [997, READ_BYTES, 10**7])
def test_bulks_around_the_buffers_sizes(size, piece):
    data = np.random.default_rng(size).bytes(size)
    around = [b"+before\r\n", bulk(data), b":7\r\n", bulk(data[:100]), bulk(data), b"+after\r\n"]
    replies = read_all(b"".join(around), [piece] * (3 * size // piece + 100), 6)
    assert replies == [b"before", data, 7, data[:100], data, b"after"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3 * READ_BYTES), max_size=6),
    st.lists(st.integers(1, 2 * READ_BYTES), max_size=40),
)
def test_any_bulks_in_any_pieces(sizes, pieces):
    datas = [bytes([n]) * size for n, size in enumerate(sizes)]
    assert read_all(b"".join(map(bulk, datas)), pieces, len(datas)) == datas


def test_large_bulks_have_writable_memory_of_their_own():
    data = bytes(READ_BYTES)
    reader = ReplyReader(Wire(bulk(data) * 2, []))
    first, second = (np.frombuffer(reader.read(), np.uint8) for _ in range(2))
    first[:] = 1
    assert not second.any()
    assert isinstance(ReplyReader(Wire(bulk(b"small"), [])).read(), bytes)


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    """Arrays, their views, and views of these: whatever is left keeps the memory."""
    size, rng = 1 << 18, np.random.default_rng(0)
    held, addresses, reused = {}, set(), 0
    for number in range(300):
        reader = ReplyReader(Wire(bulk(bytes([number % 251]) * size), []))
        array = np.frombuffer(reader.read(), np.uint8)
        reused += array.ctypes.data in addresses
        addresses.add(array.ctypes.data)
        held[number] = array[5:].reshape(-1, 1)[7:] if number % 2 else array
        del array
        for n in rng.choice(list(held), rng.integers(3)):
            held.pop(n, None)
        assert all((view == n % 251).all() for n, view in held.items())
    assert reused > 50
    assert _CAN_COUNT


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
        b"$x\r\n",
        b"$999999999999\r\n",
        b"*%d\r\n" % (MAX_ITEMS + 1),
        b"*-x\r\n",
        b":1.5\r\n",
        b":\r\n",
        b"*1\r\n" * 1000,
        b"+" + b"x" * (READ_BYTES + 1),
        b"%1\r\n",
        b"_\r\n",
    ],
    ids=repr,
)
def test_garbage(data):
    with pytest.raises(ProtocolError):
        ReplyReader(Wire(data, [])).read()


@pytest.mark.parametrize("cut", [0, 1, 3, 8, 70_000, 100_007])
def test_a_connection_that_ends(cut):
    with pytest.raises(ConnectionResetError):
        ReplyReader(Wire(bulk(bytes(100_000))[:cut], [])).read()


def test_arguments():
    packed = b"".join(pack([("SET", "ключ", b"\r\n", 12, -1), ("PING",)]))
    assert packed == (
        b"*5\r\n$3\r\nSET\r\n$8\r\n" + "ключ".encode() + b"\r\n$2\r\n\r\n\r\n$2\r\n12\r\n$2\r\n-1"
        b"\r\n*1\r\n$4\r\nPING\r\n"
    )


def frame_of(sizes):
    rng = np.random.default_rng(0)
    parts = [memoryview(rng.bytes(size)) for size in sizes]
    return Frame(parts, sum(sizes))


PARTS = {
    "small": [10, 20],
    "joined": [16 << 10],
    "not joined": [(16 << 10) + 1],
    "one large": [5 << 20],
    "many small": [3] * 5000,
    "many large": [1 << 14] * 3000,
    "mixed": [0, 1, 70_000, 0, 0, 7, 5000, 0] * 200,
}


@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS.keys())
def test_scatter_gather(sizes):
    """More parts than the kernel takes at once, through a socket that takes a little at a time."""
    frame = frame_of(sizes)
    buffers = pack([("SET", "before", 1), ("SET", "key", frame), ("SET", "after", frame)])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        ours.settimeout(20)
        received = bytearray()
        expected = sum(map(len, buffers))

        def read():
            while len(received) < expected:
                received.extend(theirs.recv(1 << 20))

        thread = threading.Thread(target=read)
        thread.start()
        write(ours, buffers)
        thread.join(20)
    assert received == b"".join(buffers)
    assert received.count(bytes(frame)) == 2


class Wrapped(socket.socket):
    """A socket of another class, as those of TLS are."""


def test_a_slow_link_may_take_longer_than_the_timeout_as_long_as_it_moves():
    ours, theirs = socket.socketpair()
    with theirs, Wrapped(ours.family, ours.type, fileno=ours.detach()) as wrapped:
        wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        wrapped.settimeout(0.5)
        received = 0

        def read_slowly():
            nonlocal received
            while received < 1_000_000:
                received += len(theirs.recv(20_000))
                waiting.wait(0.02)

        waiting = threading.Event()
        thread = threading.Thread(target=read_slowly)
        thread.start()
        write(wrapped, [bytes(1_000_000)])
        thread.join(20)
    assert received == 1_000_000


@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS.keys())
def test_frames_through_a_broker(broker_url, namespace, sizes):
    frame = frame_of(sizes)
    with channel_to(broker_url) as channel:
        ok, value = channel.exchange([("SET", namespace, frame), ("GET", namespace)])
        assert ok == b"OK"
        assert bytes(value) == bytes(frame)
        channel.call("DEL", namespace)


def test_arrays_through_a_broker(channel, namespace):
    tree = {"small": np.arange(5), "large": np.arange(1 << 18), "rows": [np.ones(3)] * 2000}
    channel.call("SET", namespace, encode(tree))
    found = decode(channel.call("GET", namespace)).tree
    np.testing.assert_array_equal(found["large"], tree["large"])
    assert len(found["rows"]) == 2000
    assert found["large"].flags.writeable
    found["large"][:] = 0
