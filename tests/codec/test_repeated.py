"""Chunks of one structure: the short way gives what the long way gives, byte by byte."""

import itertools

import numpy as np
import pytest
from codec_trees import assert_same, properties
from hypothesis import given
from hypothesis import strategies as st

from agentlace.codec import ChunkDecoder, ChunkEncoder, decode_chunk, encode_chunk
from agentlace.codec import repeated as repeated_module
from agentlace.errors import DecodeError, EncodeError


def transition(i, size=3):
    return {
        "observations": {"state": np.full((1, size), i, np.float32), "n": np.int64(i)},
        "actions": (np.full(2, -i, ">f8"), np.array(i, np.uint8)),
        "rewards": float(i),
        "steps": i,
        "dones": i % 2 == 0,
        "masks": np.float16(i),
    }


def image(i):
    return np.full((40, 40), i % 251, np.uint8)


STRUCTURES = {
    "nested": transition,
    "array": lambda i: np.full(4, i),
    "scalar": float,
    "tuple": lambda i: (np.ones(3) * i, i, True),
    "complex": lambda i: {"z": np.complex64(i), "b": np.bool_(i % 2)},
    "images": lambda i: {"observations": image(i), "next_observations": image(i + 1)},
    "text": lambda i: {"text": "pick", "n": i},
    "empty array": lambda i: {"a": np.zeros((0, 3)), "n": i},
    "strings": lambda i: {"a": np.array(["x", "yz"]), "n": i},
}


def same_frames(encoder, rows, meta):
    frame = encoder.encode(rows, meta)
    assert bytes(frame) == bytes(encode_chunk(rows, meta))
    assert frame.nbytes == len(bytes(frame))
    return bytes(frame)


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 5, 1, 7, 5), (3, 1)])
def test_one_structure_again_and_again(make, lengths):
    encoder, decoder, numbers = ChunkEncoder(), ChunkDecoder(), itertools.count()
    for policy, n in enumerate(lengths):
        rows = [make(next(numbers)) for _ in range(n)]
        meta = {"policy": [5, policy // 2]}
        data = same_frames(encoder, rows, meta)
        for buffer in (data, bytearray(data)):
            chunk, expected = decoder.decode(buffer), decode_chunk(data)
            assert (chunk.n, chunk.meta, chunk.kinds) == (n, meta, expected.kinds)
            assert_same(chunk.rows(), expected.rows())
            assert_same(chunk.tail(1).rows(), rows[1:])


def test_the_short_way_is_taken(monkeypatch):
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    decoder.decode(bytes(encoder.encode([transition(0)], {})))
    monkeypatch.setattr(repeated_module, "encode_chunk", None)
    data = bytes(encoder.encode([transition(1)], {}))
    monkeypatch.setattr(repeated_module, "decode_chunk", None)
    assert_same(decoder.decode(data).rows(), [transition(1)])


def frames(i):
    large = np.full((200, 200), i % 251, np.uint8)
    return {"observations": {"a": image(i), "b": image(i + 1)}, "next_observations": large}


def test_single_rows_with_large_leaves_take_the_short_way(monkeypatch):
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    same_frames(encoder, [frames(0)], {})
    same_frames(encoder, [frames(1), frames(2)], {})
    monkeypatch.setattr(repeated_module, "encode_chunk", None)
    row = frames(3)
    frame = encoder.encode([row], {})
    assert any(np.shares_memory(row["next_observations"], np.asarray(p)) for p in frame.parts)
    assert_same(decoder.decode(bytes(frame)).rows(), [row])


SAME = image(5)
CAMERA = np.stack([image(6), image(7)])


@pytest.mark.parametrize(
    "row",
    [
        {"observations": SAME, "next_observations": SAME},
        {"observations": CAMERA[0], "next_observations": CAMERA[1]},
        {"observations": CAMERA[0], "next_observations": CAMERA[0]},
        {"observations": CAMERA[0], "next_observations": CAMERA[0, :20]},
        {"observations": CAMERA[0], "next_observations": CAMERA[0].T},
        {"observations": CAMERA[0].T, "next_observations": np.asfortranarray(SAME)},
    ],
)
def test_a_single_row_whose_frames_are_the_same_stores_them_once(row):
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    apart = {key: value.copy() for key, value in row.items()}
    for rows in ([apart], [row], [apart], [row, row]):
        data = same_frames(encoder, rows, {})
        assert_same(decoder.decode(data).rows(), rows)


OTHERS = {
    "a missing key": lambda row: {k: v for k, v in row.items() if k != "steps"},
    "another key": lambda row: {**row, "more": 1},
    "a renamed key": lambda row: {("x" if k == "steps" else k): v for k, v in row.items()},
    "another shape": lambda row: {**row, "actions": (np.zeros(3, ">f8"), np.array(1, np.uint8))},
    "another dtype": lambda row: {**row, "masks": np.float32(1)},
    "another byte order": lambda row: {**row, "actions": (np.zeros(2), np.array(1, np.uint8))},
    "an int for a float": lambda row: {**row, "rewards": 1},
    "a float for a bool": lambda row: {**row, "dones": 1.0},
    "a bool for an int": lambda row: {**row, "steps": True},
    "a large int": lambda row: {**row, "steps": 1 << 70},
    "a list": lambda row: {**row, "actions": [1, 2]},
    "a longer tuple": lambda row: {**row, "actions": (*row["actions"], 1)},
    "None": lambda row: {**row, "rewards": None},
    "no dict": lambda row: 5,
    "an array for a scalar": lambda row: {**row, "masks": np.array(1, np.float16)},
    "a large array": lambda row: {**row, "observations": {"state": np.ones((9, 99)), "n": 1}},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_row_that_differs_goes_the_long_way(change, where):
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    for _ in range(2):
        same_frames(encoder, [transition(i) for i in range(3)], {})
        rows = [transition(i) for i in range(3)]
        rows[where] = change(rows[where])
        data = same_frames(encoder, rows, {})
        assert_same(decoder.decode(data).rows(), rows)
    same_frames(encoder, [transition(i) for i in range(3)], {})


def test_a_value_that_may_not_travel_is_named():
    encoder = ChunkEncoder()
    encoder.encode([transition(0)], {})
    with pytest.raises(EncodeError) as caught:
        encoder.encode([{**transition(1), "rewards": object()}], {})
    assert caught.value.path == "rewards"
    same_frames(encoder, [transition(2)], {})


def test_structures_that_never_repeat_are_no_longer_looked_for():
    encoder = ChunkEncoder()
    for i in range(3 * repeated_module.MISSES):
        same_frames(encoder, [{str(i): i}], {})
    assert encoder._structure is None


def test_what_is_remembered_is_bounded():
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    for n in range(1, 3 * repeated_module.HEADERS):
        data = same_frames(encoder, [transition(i) for i in range(n)], {})
        assert decoder.decode(data).n == n
    assert len(encoder._headers) <= repeated_module.HEADERS
    assert len(decoder._known) <= repeated_module.HEADERS


def test_decoded_chunks_share_no_memory():
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    data = bytes(encoder.encode([np.zeros(8)], {}))
    first, second, third = (decoder.decode(data) for _ in range(3))
    second.columns[:] = 1
    third.meta["mine"] = 1
    assert not first.columns.any() and not decoder.decode(data).columns.any()
    assert decoder.decode(data).meta == {}


@properties(150)
@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_known_header_does_not_let_damage_through(position, value, cut):
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    data = bytes(encoder.encode([transition(1)], {}))
    decoder.decode(data)
    position = min(position, len(data) - 1)
    if cut:
        damaged = data[:position]
    else:
        damaged = data[:position] + bytes([value]) + data[position + 1 :]
    if damaged == data:
        return
    with pytest.raises(DecodeError):
        decoder.decode(damaged)


def test_a_known_header_with_a_shorter_body_is_refused():
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    rows = [{"image": np.ones((200, 200), np.uint8), "n": 1}]
    data = bytes(encoder.encode(rows, {}))
    decoder.decode(data)
    shorter = bytearray(data[:-1000])
    shorter[12:20] = len(shorter).to_bytes(8, "little")
    with pytest.raises(DecodeError):
        decoder.decode(shorter)


def test_meta_that_only_compares_equal_is_not_the_same():
    encoder, decoder = ChunkEncoder(), ChunkDecoder()
    for meta in ({"p": 1}, {"p": True}, {"p": 1.0}, {"p": [1, 2]}, {"p": 1}):
        data = same_frames(encoder, [transition(0)], meta)
        chunk = decoder.decode(data)
        assert_same(dict(chunk.meta), meta)
        if meta == {"p": [1, 2]}:
            chunk.meta["p"].append(3)
            assert decoder.decode(data).meta == {"p": [1, 2]}


def test_a_chunk_too_large_goes_the_long_way_to_its_error():
    encoder = ChunkEncoder()
    row = {"a": np.zeros((0, 1000)), "n": 1}
    encoder.encode([row], {})
    with pytest.raises(EncodeError):
        encoder.encode([row] * 2000, {})


def test_more_values_than_a_chunk_takes_go_in_halves():
    """The actor's end splits what is refused (:class:`agentlace.transport.producer.Producer`)."""
    encoder, row = ChunkEncoder(), {str(i): i for i in range(300)}
    encoder.encode([row] * 10, {})
    for _ in range(2):
        with pytest.raises(EncodeError, match="8192 rows of 300 leaves are too many"):
            encoder.encode([row] * 8192, {})
    assert ChunkDecoder().decode(bytes(encoder.encode([row] * 2048, {}))).n == 2048
