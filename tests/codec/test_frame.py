"""The bytes of a frame: layout, alignment, who owns which memory, and what is checked first."""

import struct
import zlib

import numpy as np
import pytest
from codec_trees import (
    MEBI,
    array_leaves,
    assert_same,
    memory_below,
    properties,
    random_array,
    trees,
)
from hypothesis import given

from agentlace.codec import Frame, Message, decode, encode, frame, leaf_spans
from agentlace.codec.frame import ALIGNMENT, PROTOCOL_VERSION, WHOLE_CRC_BYTES
from agentlace.errors import AgentlaceError, DecodeError, EncodeError, MissingExtra

LARGE = {"a": np.arange(9000, dtype=np.float32), "b": [np.zeros(5), np.ones((70, 50))], "c": "x"}


def address(array):
    return array.ctypes.data


def offsets(data, tree):
    """Where a received tree's arrays lie in the frame, those that have bytes."""
    start = address(np.frombuffer(data, np.uint8))
    return [address(array) - start for array in array_leaves(tree) if array.nbytes]


@properties(150)
@given(trees)
def test_the_sizes_of_any_frame_add_up(tree):
    encoded = encode(tree)
    data = bytes(encoded)
    assert isinstance(encoded, Frame)
    assert encoded.nbytes == len(data) == sum(map(len, encoded.parts))
    assert bytes(encoded.copy()) == data
    magic, version, whole, crc, header_bytes, nbytes = struct.unpack_from("<2sBBIIQ", data)
    assert (magic, version, nbytes) == (b"AL", PROTOCOL_VERSION, len(data))
    assert whole == (len(data) <= WHOLE_CRC_BYTES)
    assert crc == zlib.crc32(data[8:] if whole else data[8 : 20 + header_bytes])


@properties(150)
@given(trees)
def test_arrays_are_aligned_views_of_a_writable_frame(tree):
    data = bytearray(bytes(encode(tree)))
    received = decode(data).tree
    assert_same(received, tree)
    places = offsets(data, received)
    assert all(0 < place < len(data) and place % ALIGNMENT == 0 for place in places)
    assert sorted(places) == places


@pytest.mark.parametrize("shape", [(8192,), (64, 128), (1, 8192), (8192, 1)])
def test_encoding_refers_to_the_arrays_memory(shape):
    array = random_array(np.dtype("f4"), shape)
    parts = encode({"a": array, "b": [array.T.T]}).parts
    referring = [part for part in parts if np.shares_memory(np.frombuffer(part, np.uint8), array)]
    assert [len(part) for part in referring] == [array.nbytes, array.nbytes]
    assert address(np.frombuffer(referring[0], np.uint8)) == address(array)


def test_encoding_large_arrays_takes_no_memory():
    tree = {"images": np.zeros((100, 256, 256, 3), np.uint8), "fixed": np.ones(1 << 20)}
    with memory_below(2 * MEBI):
        assert encode(tree).nbytes > 26 * MEBI


def test_decoding_a_writable_frame_takes_no_memory():
    data = bytearray(bytes(encode({"images": np.zeros((100, 256, 256, 3), np.uint8)})))
    with memory_below(100_000):
        images = decode(data).tree["images"]
    images[99, 0, 0, 0] = 7
    assert data[-256 * 256 * 3] == 7


def test_a_read_only_frame_is_copied_once():
    data = bytes(encode(LARGE))
    with memory_below(len(data) + 100_000):
        received = decode(data).tree
    assert_same(received, LARGE)
    for array in array_leaves(received):
        array[...] = 3
    assert_same(decode(data).tree, LARGE)


def test_a_frame_without_arrays_is_not_copied():
    data = bytes(encode({"text": "x" * MEBI}))
    with memory_below(4 * MEBI):
        assert len(decode(data).tree["text"]) == MEBI


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))])
def test_frames_arrive_in_any_buffer(kind):
    assert_same(decode(kind(bytes(encode(LARGE)))).tree, LARGE)


def test_a_frame_lies_anywhere_in_memory():
    data = bytes(encode(LARGE))
    for shift in (1, 3, 64):
        assert_same(decode(memoryview(bytearray(shift) + data)[shift:]).tree, LARGE)


def test_an_array_keeps_its_frame_alive():
    data = bytearray(bytes(encode(LARGE)))
    array = decode(data).tree["a"]
    with pytest.raises(BufferError):
        data.clear()
    del data
    assert_same(array, LARGE["a"])


def test_a_copy_refers_to_nothing():
    tree = {"a": np.zeros(9000)}
    copied = encode(tree).copy()
    tree["a"][:] = 1
    assert not copied.readonly
    assert decode(copied).tree["a"].sum() == 0


def test_kind_and_meta_travel_beside_the_tree():
    meta = {"n": 3, "text": "x", "list": [1, None, 2.5], "dict": {"a": b"b"}}
    message = decode(bytes(encode([1], "observation", meta)))
    assert message == Message("observation", meta, [1])
    assert decode(bytes(encode(None))) == Message("tree", {}, None)


def test_another_kind_is_refused():
    with pytest.raises(DecodeError, match="'reply' where 'request'"):
        decode(bytes(encode(1, "reply")), "request")


@pytest.mark.parametrize("value", [object(), np.zeros(2), {1, 2}, 1 << 70])
def test_meta_that_is_not_plain_is_refused(value):
    with pytest.raises(EncodeError) as caught:
        encode([1], meta={"value": value})
    assert caught.value.path == "meta"


def test_another_protocol_version_is_named():
    data = bytearray(bytes(encode(1)))
    data[2] = PROTOCOL_VERSION + 1
    with pytest.raises(DecodeError, match="version 2, this is 1: install the same agentlace"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"AL", b"PK\3\4" * 10, b"\x80\x04" * 10, b"{}" * 20])
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(DecodeError):
        decode(data)


def test_a_frame_that_is_too_large_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(frame, "MAX_FRAME_BYTES", 10_000)
    assert encode(np.zeros(9_000, np.uint8)).nbytes < 10_000
    with pytest.raises(EncodeError, match="more than a frame's 10000"):
        encode([np.zeros(6_000, np.uint8)] * 2)


def test_an_array_that_is_too_large_is_refused_before_it_is_copied():
    too_large = np.broadcast_to(np.float32(0), (1000, 1000, 1000))
    with memory_below(2 * MEBI), pytest.raises(EncodeError, match="an array of 4000000000 bytes"):
        encode({"a": {"b": too_large}})
    with pytest.raises(EncodeError) as caught:
        encode({"a": {"b": too_large}})
    assert caught.value.path == "a/b"


def test_a_header_that_is_too_large_is_refused(monkeypatch):
    data = bytes(encode("x" * 20_000))
    monkeypatch.setattr(frame, "MAX_HEADER_BYTES", 10_000)
    with pytest.raises(EncodeError, match="outside of arrays"):
        encode("x" * 20_000)
    with pytest.raises(DecodeError, match="header of 20"):
        decode(data)


def test_leaf_spans_tell_where_the_arrays_are():
    data = encode(LARGE).copy()
    header_end, spans = leaf_spans(data)
    received = decode(data).tree
    assert [offset for offset, _ in spans] == offsets(data, received)
    assert [nbytes for _, nbytes in spans] == [array.nbytes for array in array_leaves(LARGE)]
    assert 20 < header_end <= spans[0][0]
    (offset, nbytes) = spans[0]
    assert bytes(data[offset : offset + nbytes]) == LARGE["a"].tobytes()


def test_errors_are_of_one_tree():
    assert issubclass(DecodeError, AgentlaceError)
    assert issubclass(EncodeError, AgentlaceError)
    assert issubclass(DecodeError, ValueError)
    assert issubclass(EncodeError, TypeError)
    assert issubclass(MissingExtra, ImportError)
