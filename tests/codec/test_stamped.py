"""Trees with a stamp: what comes out is what went in, remembered or not, and lies are refused."""

import math
import struct
import sys

import msgpack
import numpy as np
import pytest
from codec_trees import MEBI, assert_same, leaf, memory_below, properties, trees
from hypothesis import given
from hypothesis import strategies as st

from agentlace import native
from agentlace.codec import StampedDecoder, StampedEncoder, decode, encode, encode_stamped
from agentlace.codec import frame as frame_module
from agentlace.codec import stamped as stamped_module
from agentlace.codec import unstamped as unstamped_module
from agentlace.codec.frame import WHOLE_CRC_BYTES
from agentlace.codec.tree import Mark
from agentlace.errors import DecodeError, EncodeError

META = {"what": "act", "name": "step"}
STAMP = (7, 2.5)
NUMBER = msgpack.ExtType(int(Mark.NUMBER), b"")


@pytest.fixture(scope="module", autouse=True, params=["compiled", "pure"])
def way(request):
    """All of it holds for the compiled functions and for what takes their place."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pure":
            patch.setattr(native, "frame", None)
            patch.setattr(native, "opened", None)
        elif native.frame is None:
            pytest.skip("there is no compiled module here: no compiler, or AGENTLACE_PURE=1")
        yield request.param


def ends():
    return StampedEncoder("request", META, "Qd"), StampedDecoder("request", "Qd", dict)


def sent(encoder, decoder, tree, stamp=STAMP):
    """Send a tree; checks everything but the tree, which it returns."""
    frame = encoder.encode(stamp, tree)
    data = bytes(frame)
    assert frame.nbytes == len(data)
    results = [decoder.decode(buffer) for buffer in (data, bytearray(data))]
    results.append(StampedDecoder("request", "Qd", dict).decode(data))
    for about, values, got in results:
        assert (about, values[:2]) == (META, stamp)
        assert_same(got, tree)
    return results[0][2]


def action(i):
    return {
        "pose": np.full(7, i, np.float32),
        "big": np.full((3, 300), i, ">i2"),
        "numbers": [float(i), i, i % 2 == 0, np.float32(i), np.bool_(i % 2), np.float64(-i)],
        "texts": ("pick", b"raw", None, {"deep": [1, (2.0,)]}),
        "set": {"a", "b"},
    }


def test_one_structure_again_and_again():
    encoder, decoder = ends()
    for i in range(4):
        sent(encoder, decoder, action(i), (i, float(i)))
    assert len(decoder._known) == 1


@pytest.mark.parametrize("size", [0, 1, WHOLE_CRC_BYTES - 300, WHOLE_CRC_BYTES, 1 << 20])
def test_sizes(size):
    encoder, decoder = ends()
    for i in range(3):
        sent(encoder, decoder, {"image": np.full(size, i, np.uint8), "n": i})


def test_the_short_way_is_taken(monkeypatch):
    encoder, decoder = ends()
    sent(encoder, decoder, action(0))
    monkeypatch.setattr(stamped_module, "TreeEncoder", None)
    data = bytes(encoder.encode(STAMP, action(1)))
    monkeypatch.setattr(unstamped_module, "opened", None)
    assert_same(decoder.decode(data)[2], action(1))


@properties(150)
@given(st.lists(trees, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_any_trees_in_any_order(found, order):
    encoder, decoder = ends()
    for number in [0, 0, *order]:
        sent(encoder, decoder, found[number % len(found)])


class Text(str):
    """What compares equal to a key but is none."""


ALIKE = [
    *(1, True, 1.0, np.float32(1), np.float64(1), np.int64(1), np.array(1), np.array(1.0), None),
    *(0, False, 0.0, -0.0, math.nan, math.inf, "1", b"1", 1 << 63, -(1 << 63), 1 << 70),
    *([1], (1,), {"1": 1}, {1: 1}, {True: 1}, {1.0: 1}, {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    *({"a"}, {"b"}, {1}, {True}, frozenset({"a"}), set(), [], (), {}, [[]], [()], [{}], [None]),
    *(np.zeros(2), np.zeros(2, ">f8"), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros((0, 2))),
    *(np.zeros((4, 3))[:, ::2], np.asfortranarray(np.eye(3)), np.array(["x"]), np.longdouble(1)),
    *(np.str_("a"), np.bytes_(b"a"), np.datetime64(1, "s"), np.complex64(1j), np.zeros(2, "V3")),
]


def test_what_arrays_are_a_part_of_is_made_anew_each_time():
    spaces = pytest.importorskip("gymnasium").spaces
    encoder, decoder = ends()
    tree = {"space": spaces.Box(np.zeros(3, np.float32), np.ones(3, np.float32)), "x": np.zeros(3)}
    for _ in range(3):
        data = bytes(encoder.encode(STAMP, tree))
        assert decoder.decode(data)[2]["space"] == tree["space"]
    assert not decoder._known


@pytest.mark.parametrize("first", range(len(ALIKE)))
def test_values_that_are_alike_are_not_mixed_up(first):
    encoder, decoder = ends()
    for other in ALIKE:
        encoder._misses = 0
        for tree in (ALIKE[first], other):
            sent(encoder, decoder, {"x": tree})


@pytest.mark.parametrize("key", [np.str_("a"), Text("a")])
def test_keys_that_only_compare_equal_are_refused_as_ever(key):
    encoder, _ = ends()
    encoder.encode(STAMP, {"a": 1})
    for tree in ({key: 1}, {"x": {key}}):
        results = []
        for again in (encode, lambda tree: encoder.encode(STAMP, tree)):
            try:
                results.append(len(bytes(again(tree))) > 0)
            except EncodeError as error:
                results.append((error.path, str(error)))
        assert results[0] == results[1]


def test_a_value_that_may_not_travel_is_named():
    encoder, decoder = ends()
    for _ in range(2):
        sent(encoder, decoder, {"a": [1.0]})
        with pytest.raises(EncodeError) as caught:
            encoder.encode(STAMP, {"a": [object()]})
        assert caught.value.path == "a/0"


def test_what_was_sent_may_change_afterwards():
    encoder, decoder = ends()
    tree = {"set": {"a"}, "list": ["a"]}
    sent(encoder, decoder, tree)
    tree["set"].add("b")
    tree["list"].append("b")
    sent(encoder, decoder, tree)


def test_decoded_trees_share_nothing():
    encoder, decoder = ends()
    data = bytes(encoder.encode(STAMP, action(1)))
    for _ in range(3):
        tree = decoder.decode(data)[2]
        assert_same(tree, action(1))
        tree["pose"][:] = 9
        tree["numbers"].append(1)
        tree["set"].add("more")
        tree["texts"][3]["deep"].clear()
        tree["more"] = 1


def test_structures_that_never_repeat_are_no_longer_looked_for():
    encoder, decoder = ends()
    for i in range(40):
        sent(encoder, decoder, {str(i): i})
    assert encoder._structure is None


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(unstamped_module, "KNOWN_BYTES", 2000)
    encoder, decoder = ends()
    decoder._left = 2000
    for n in range(200):
        sent(encoder, decoder, {f"{n:0200}": np.zeros(3)})
        assert sum(map(len, decoder._known)) < 3000
    sent(encoder, decoder, {str(n): np.zeros(1) for n in range(10_000)})
    sent(encoder, decoder, [0.5] * 10_000)


@properties(300)
@given(st.integers(0, 700), st.integers(0, 255), st.booleans(), st.booleans())
def test_a_known_header_does_not_let_damage_through(position, value, cut, large):
    encoder, decoder = ends()
    tree = action(1) | ({"image": np.zeros(20_000, np.uint8)} if large else {})
    data = bytes(encoder.encode(STAMP, tree))
    decoder.decode(data)
    damaged = data[:position] if cut else data[:position] + bytes([value]) + data[position + 1 :]
    if damaged == data or (large and not cut and position >= len(decoder_key(decoder)) + 8):
        return  # the checksum of a large frame covers its header only
    with pytest.raises(DecodeError):
        decoder.decode(damaged)


def decoder_key(decoder):
    (key,) = decoder._known
    return key


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_known_header_with_a_shorter_or_longer_body_is_refused(size):
    encoder, decoder = ends()
    data = bytes(encoder.encode(STAMP, {"image": np.zeros(size, np.uint8)}))
    decoder.decode(data)
    for other in (data[:-1], data + b"\0", data[: len(data) // 2]):
        with pytest.raises(DecodeError):
            decoder.decode(other)


def test_other_frames_are_refused():
    _, decoder = ends()
    for tree in (None, [], [1, 2], [np.zeros(4), 1], [np.zeros((4, 4), np.uint8), 1], {}):
        with pytest.raises(DecodeError):
            decoder.decode(bytes(encode(tree, "request", META)))
    for frame in (
        encode_stamped("reply", META, bytes(16), None),
        encode_stamped("request", META, bytes(15), None),
        encode_stamped("request", META, b"", None),
    ):
        with pytest.raises(DecodeError):
            decoder.decode(bytes(frame))


@pytest.mark.parametrize(
    "number",
    [
        *([NUMBER], [NUMBER, "q"], [NUMBER, "q", 0, 1], [NUMBER, "q", -1], [NUMBER, "q", 9]),
        *([NUMBER, "q", (1 << 64) - 1], [NUMBER, "q", "0"], [NUMBER, "q", None], [NUMBER, 1, 0]),
        *([NUMBER, "", 0], [NUMBER, "s", 0], [NUMBER, "99999999s", 0], [NUMBER, "|O", 0]),
        *([NUMBER, "<f8", 9], [NUMBER, "<U1", 0], [NUMBER, "|V2147483647", 0], [NUMBER, [], 0]),
        *([1, NUMBER], {"k": NUMBER}, NUMBER, [NUMBER, [NUMBER, "q", 0], 0]),
    ],
    ids=repr,
)
def test_numbers_that_lie_are_refused(number):
    forged = msgpack.packb([leaf(0), number])
    header = msgpack.packb(["request", META, [["|u1", [16]]], forged])
    data = bytes(frame_module.assemble(header, [[bytes(16)]]))
    _, decoder = ends()
    with memory_below(MEBI):
        for _ in range(2):
            with pytest.raises(DecodeError):
                decoder.decode(data)
        with pytest.raises(DecodeError):
            decode(data)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([[NUMBER, "q", 8], [NUMBER, "q", 0], [NUMBER, "q", 8]], [5, 4, 5]),
        ({"k": [NUMBER, "?", 0]}, {"k": True}),
        ([[NUMBER, "<f4", 12]], [np.float32(0)]),
    ],
)
def test_numbers_at_other_places_are_read_where_they_are(tree, expected):
    """No encoder of ours makes them; they are not remembered."""
    header = msgpack.packb(["request", META, [["|u1", [16]]], msgpack.packb([leaf(0), tree])])
    frame = frame_module.assemble(header, [[struct.pack("<qq", 4, 5)]])
    _, decoder = ends()
    for _ in range(2):
        assert_same(decoder.decode(bytes(frame))[2], expected)
    assert not decoder._known


@properties(150)
@given(st.lists(trees, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_both_ways_make_the_same_frames(way, found, order):
    if way == "pure":
        return  # they are compared once
    mine, theirs = ends()[0], ends()[0]
    for number in order:
        tree = found[number % len(found)]
        frame = bytes(mine.encode((number, 0.5), tree))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "frame", None)
            assert bytes(theirs.encode((number, 0.5), tree)) == frame


def test_nothing_is_kept_of_what_has_passed():
    encoder, decoder = ends()
    tree = action(1)
    counted = [*tree.values(), tree["pose"].dtype, *tree["numbers"], *tree]

    def exchange():
        for _ in range(1000):
            decoder.decode(bytearray(bytes(encoder.encode(STAMP, tree))))
            decoder.decode(bytes(encoder.encode(STAMP, tree)))
            encoder.encode(STAMP, {**tree, "big": tree["big"][:, ::-1]})

    exchange()
    before = [sys.getrefcount(item) for item in counted]
    exchange()
    grown = [sys.getrefcount(item) - count for item, count in zip(counted, before, strict=True)]
    assert max(grown) < 100


@pytest.mark.parametrize("big", [np.zeros((300, 3), ">i2").T, np.zeros((3, 600), ">i2")[:, ::2]])
def test_arrays_that_are_not_contiguous(big):
    encoder, decoder = ends()
    big[:] = np.arange(900).reshape(3, 300)
    for i in range(3):
        sent(encoder, decoder, {**action(i), "big": big})


@pytest.mark.parametrize(
    "stamp", [(1,), (1, 2.0, 3), ("1", 2.0), (-1, 2.0), (1, "2"), (1 << 64, 0.0)]
)
def test_a_stamp_of_another_form_is_refused(stamp):
    encoder, _ = ends()
    encoder.encode(STAMP, action(1))
    with pytest.raises((struct.error, TypeError, EncodeError)):
        encoder.encode(stamp, action(1))
    encoder.encode(STAMP, action(1))
