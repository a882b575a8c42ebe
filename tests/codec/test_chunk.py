"""Rows ⇄ columns, with the frames that rows share stored once."""

import numpy as np
import pytest
from codec_trees import (
    MEBI,
    all_dtypes,
    array_leaves,
    assert_same,
    hashable,
    memory_below,
    properties,
    random_array,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st

from agentlace.codec import Chunk, chunk, decode_chunk, encode, encode_chunk, shared
from agentlace.errors import DecodeError, EncodeError

IMAGE = (64, 64, 3)
IMAGE_BYTES = 64 * 64 * 3


def received(rows, meta=None):
    return decode_chunk(bytearray(bytes(encode_chunk(rows, meta))))


def image(seed):
    return random_array(np.dtype("u1"), IMAGE, seed)


def episode(n, seed=0, wrap=lambda frame: frame):
    """Transitions whose next observation is the next row's observation."""
    observations = [
        {"wrist": wrap(image(seed + i)), "state": np.full(3, i, np.float32)} for i in range(n + 1)
    ]
    return [
        {
            "observations": observations[i],
            "next_observations": observations[i + 1],
            "actions": np.full(2, i, np.float32),
            "rewards": float(i),
            "masks": 1.0,
            "dones": i == n - 1,
        }
        for i in range(n)
    ]


def leaf_makers():
    """Functions that make a leaf from a seed; the rows of one leaf are alike."""
    dtypes = [dtype for dtype in all_dtypes() if dtype.kind not in "US"]
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple) | st.just((20, 40))
    array = st.builds(
        lambda dtype, shape: lambda seed: random_array(dtype, shape, seed),
        st.sampled_from(all_dtypes()),
        shapes,
    )
    scalar = st.sampled_from(dtypes).map(lambda d: lambda seed: random_array(d, (), seed)[()])
    python = st.sampled_from([lambda i: i / 3, lambda i: i - 5, lambda i: bool(i % 2)])
    return array | scalar | python


structures = st.recursive(
    leaf_makers(),
    lambda inner: (
        st.dictionaries(hashable, inner, min_size=1, max_size=4)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=8,
)


def make(structure, seed):
    if isinstance(structure, dict):
        return {key: make(inner, seed) for key, inner in structure.items()}
    if isinstance(structure, tuple):
        return tuple(make(inner, seed) for inner in structure)
    return structure(seed)


@properties(300)
@given(structures, st.integers(1, 5))
def test_rows_of_one_structure_travel_as_columns(structure, n):
    rows = [make(structure, seed) for seed in range(n)]
    result = received(rows)
    assert result.n == n
    assert result.columns is not None
    assert all(column.shape[0] == n for column in array_leaves(result.columns))
    assert all(column.flags.writeable for column in array_leaves(result.columns))
    assert_same(result.rows(), rows)


@properties(200)
@given(structures, st.integers(1, 4), st.integers(0, 5))
def test_the_tail_is_the_rest_of_the_rows(structure, n, skip):
    rows = [make(structure, seed) for seed in range(n)]
    tail = received(rows, {"a": 1}).tail(skip)
    assert (tail.n, tail.meta) == (max(n - skip, 0), {"a": 1})
    assert_same(tail.rows(), rows[skip:])


@properties(200)
@given(st.lists(trees, max_size=4))
def test_any_rows_come_back_exactly(rows):
    result = received(rows)
    assert result.n == len(rows)
    assert_same(result.rows(), rows)
    assert_same(result.tail(1).rows(), rows[1:])


@properties(100)
@given(structures, trees)
def test_a_row_that_is_different_comes_back_too(structure, tree):
    rows = [make(structure, 1), tree, make(structure, 2)]
    assert_same(received(rows).rows(), rows)


RAGGED = {
    "nothing": [],
    "empty dicts": [{}, {}],
    "empty dicts inside": [{"a": {}}, {"a": {}}],
    "ints that are too large": [{"a": 1}, {"a": 2**63}],
    "strings": ["a", "b"],
    "None": [{"a": None}, {"a": None}],
    "bytes": [{"a": b"x"}, {"a": b"y"}],
    "lists": [[1, 2], [3, 4]],
    "sets": [{"a": {1}}, {"a": {2}}],
    "int and float": [{"r": 1}, {"r": 1.0}],
    "bool and int": [{"r": True}, {"r": 1}],
    "python and numpy": [{"r": 1.0}, {"r": np.float64(1.0)}],
    "array and scalar": [{"r": np.array(1.0)}, {"r": np.float64(1.0)}],
    "dtypes": [{"a": np.zeros(2, np.float32)}, {"a": np.zeros(2, np.float64)}],
    "byte orders": [{"a": np.zeros(2, "<f4")}, {"a": np.zeros(2, ">f4")}],
    "units": [{"a": np.datetime64(1, "s")}, {"a": np.datetime64(1, "ms")}],
    "shapes": [{"a": np.zeros(2)}, {"a": np.zeros(3)}],
    "ranks": [{"a": np.zeros(2)}, {"a": np.zeros((2, 1))}],
    "missing key": [{"a": 1, "b": 2}, {"a": 1}],
    "other key": [{"a": 1}, {"b": 1}],
    "dict and array": [{"a": {"b": 1}}, {"a": np.zeros(2)}],
    "tuple lengths": [(1, 2), (1, 2, 3)],
    "tuple and dict": [(1,), {0: 1}],
    "numpy strings": [{"a": np.str_("x")}, {"a": np.str_("yz")}],
    "numpy strings that end in zeros": [{"a": np.bytes_(b"x\0")}, {"a": np.bytes_(b"yz")}],
    "32 dimensions": [np.zeros((1,) * 32), np.zeros((1,) * 32)],
}


@pytest.mark.parametrize("name", RAGGED)
def test_rows_without_a_common_structure_travel_as_rows(name):
    result = received(RAGGED[name])
    assert result.columns is None
    assert result.n == len(RAGGED[name])
    assert_same(result.rows(), RAGGED[name])
    assert_same(result.tail(1).rows(), RAGGED[name][1:])


COLUMNAR = {
    "ints": ([1, -2, 2**62], np.array([1, -2, 2**62])),
    "bools": ([True, False], np.array([True, False])),
    "floats": ([1.0, float("inf")], np.array([1.0, np.inf])),
    "numpy scalars": ([np.float32(1), np.float32(2)], np.array([1, 2], np.float32)),
    "datetimes": ([np.datetime64(3, "s")] * 2, np.array([3, 3], "M8[s]")),
    "bare arrays": ([np.arange(3), np.arange(3) + 1], np.array([[0, 1, 2], [1, 2, 3]])),
    "0-d arrays": ([np.array(1.5), np.array(2.5)], np.array([1.5, 2.5])),
    "big-endian": ([np.arange(2, dtype=">f4")] * 2, np.array([[0, 1]] * 2, ">f4")),
    "strings": ([np.array(["a", "bc"])] * 2, np.array([["a", "bc"]] * 2)),
    "zero size": ([np.zeros((2, 0), np.int8)] * 3, np.zeros((3, 2, 0), np.int8)),
}


@pytest.mark.parametrize("name", COLUMNAR)
def test_what_has_a_structure_is_stacked(name):
    rows, expected = COLUMNAR[name]
    result = received([{"x": (row,)} for row in rows])
    assert_same(result.columns, {"x": (expected,)})
    assert_same(result.rows(), [{"x": (row,)} for row in rows])


def test_keys_may_come_in_another_order():
    rows = [{"a": 1, "b": 2.0}, {"b": 3.0, "a": 4}]
    result = received(rows)
    assert result.columns is not None
    assert result.rows() == rows


def test_rows_in_every_memory_layout():
    base = random_array(np.dtype(">i4"), (6, 40, 30))
    for rows in (
        [frame.T for frame in base],
        [frame[::-1] for frame in base],
        [frame[::2, 1:] for frame in base],
        [np.broadcast_to(frame[0], (40, 30)) for frame in base],
        [np.asfortranarray(frame) for frame in base],
    ):
        assert_same(received(rows).columns, np.array(rows, base.dtype))


def test_meta_travels_with_the_rows():
    meta = {"actor": "robot 1", "lost": 3, "episode": [1, 2]}
    assert received([1, 2], meta).meta == meta
    assert received(["a"], meta).meta == meta
    assert received([1]).meta == {}


def test_transitions_may_be_any_sequence():
    assert decode_chunk(bytes(encode_chunk(({"a": 1}, {"a": 2})))).rows() == [{"a": 1}, {"a": 2}]


def test_shared_frames_are_stored_once():
    rows = episode(8)
    encoded = encode_chunk(rows)
    assert encoded.nbytes < 9 * IMAGE_BYTES + 2000
    result = decode_chunk(bytearray(bytes(encoded)))
    assert_same(result.rows(), rows)
    now, after = result.columns["observations"], result.columns["next_observations"]
    assert np.shares_memory(now["wrist"], after["wrist"])
    assert after["wrist"][:-1].ctypes.data == now["wrist"][1:].ctypes.data
    now["wrist"][1] = 5
    assert (after["wrist"][0] == 5).all()


def test_rows_that_share_nothing_take_their_own_memory():
    rows = [{"observations": image(i), "next_observations": image(100 + i)} for i in range(4)]
    encoded = encode_chunk(rows)
    assert 8 * IMAGE_BYTES < encoded.nbytes < 8 * IMAGE_BYTES + 1000
    result = decode_chunk(bytearray(bytes(encoded)))
    assert not np.shares_memory(*array_leaves(result.columns))
    assert_same(result.rows(), rows)


def test_equal_values_in_different_memory_are_not_searched_for():
    rows = [{"observations": np.zeros(IMAGE), "next_observations": np.zeros(IMAGE)}]
    assert encode_chunk(rows).nbytes > 2 * np.zeros(IMAGE).nbytes


def test_views_of_the_same_memory_are_the_same_frame():
    def view(frame):
        return frame[...]

    rows = episode(8)
    for row in rows:
        row["observations"] = {key: view(value) for key, value in row["observations"].items()}
    assert rows[1]["observations"]["wrist"] is not rows[0]["next_observations"]["wrist"]
    encoded = encode_chunk(rows)
    assert encoded.nbytes < 9 * IMAGE_BYTES + 2000
    assert_same(decode_chunk(bytes(encoded)).rows(), rows)


def test_slices_of_one_recording_are_shared():
    recording = random_array(np.dtype("u1"), (9, *IMAGE))
    rows = [{"observations": recording[i], "next_observations": recording[i + 1]} for i in range(8)]
    encoded = encode_chunk(rows)
    assert encoded.nbytes < 9 * IMAGE_BYTES + 1000
    assert_same(decode_chunk(bytes(encoded)).rows(), rows)


def test_views_that_differ_in_shape_strides_or_dtype_are_not_confused():
    square = random_array(np.dtype("<f4"), (30, 30))
    rows = [
        {"a": {"x": square}, "b": {"x": square.T}, "c": {"x": square[::-1]}},
        {"a": {"x": square}, "b": {"x": square}, "c": {"x": square.T}},
    ]
    assert_same(received(rows).rows(), rows)
    views = [{"a": {"x": square}, "b": {"x": square.view("<i4")}, "c": {"x": square.reshape(-1)}}]
    assert_same(received(views).rows(), views)


def test_a_step_that_is_repeated_is_stored_once():
    still = image(0)
    encoded = encode_chunk([{"observations": still}] * 50)
    assert encoded.nbytes < IMAGE_BYTES + 1000
    assert_same(decode_chunk(bytes(encoded)).rows(), [{"observations": still}] * 50)


def test_an_episode_break_inside_a_chunk():
    rows = [*episode(3), *episode(1, 50), *episode(4, 90)]
    encoded = encode_chunk(rows)
    assert encoded.nbytes < (4 + 2 + 5) * IMAGE_BYTES + 3000
    result = decode_chunk(bytes(encoded))
    assert_same(result.rows(), rows)
    assert_same(result.tail(4).rows(), rows[4:])


def test_two_cameras_and_a_common_action():
    shared = image(1)
    rows = [
        {
            "observations": {"left": image(i), "right": shared},
            "next_observations": {"left": image(i + 1), "right": shared},
            "actions": {"goal": shared},
        }
        for i in range(3)
    ]
    encoded = encode_chunk(rows)
    assert encoded.nbytes < (6 + 1 + 1) * IMAGE_BYTES + 2000
    assert_same(decode_chunk(bytes(encoded)).rows(), rows)


def test_transitions_that_are_tuples_share_frames_too():
    frames = [image(i) for i in range(6)]
    rows = [(frames[i], 0.5, frames[i + 1], i == 4) for i in range(5)]
    encoded = encode_chunk(rows)
    assert encoded.nbytes < 6 * IMAGE_BYTES + 1000
    assert_same(decode_chunk(bytes(encoded)).rows(), rows)


def test_shared_frames_of_an_extra_or_structured_dtype():
    for dtype in all_dtypes():
        frames = [random_array(dtype, (3, 400), i) for i in range(4)]
        rows = [{"o": {"x": frames[i]}, "n": {"x": frames[i + 1][...]}} for i in range(3)]
        assert_same(received(rows).rows(), rows)


def test_encoding_images_takes_no_memory():
    rows = episode(400)
    with memory_below(2 * MEBI):
        assert encode_chunk(rows).nbytes > 4 * MEBI


def test_decoding_an_unbroken_episode_takes_no_memory():
    data = bytearray(bytes(encode_chunk(episode(20))))
    with memory_below(50_000):
        assert decode_chunk(data).n == 20


def test_columns_beyond_a_frame_are_refused_even_if_shared(monkeypatch):
    monkeypatch.setattr(chunk, "MAX_FRAME_BYTES", 10 * IMAGE_BYTES)
    still = image(0)
    assert encode_chunk([{"a": still}] * 10).nbytes > IMAGE_BYTES
    with pytest.raises(EncodeError, match="11 rows hold more"):
        encode_chunk([{"a": still}] * 11)


def test_a_chunk_that_gathers_more_than_a_frame_is_refused(monkeypatch):
    data = bytes(encode_chunk([{"a": image(i % 2)} for i in range(2)] * 20))
    assert decode_chunk(data).n == 40
    monkeypatch.setattr(shared, "MAX_FRAME_BYTES", 30 * IMAGE_BYTES)
    with memory_below(MEBI), pytest.raises(DecodeError, match="hold more"):
        decode_chunk(data)


@pytest.mark.parametrize("before", [[], [{"a": {"b": 1}}], ["ragged"]], ids=str)
@pytest.mark.parametrize(
    "bad", [object(), np.array([None]), 1j, print], ids=lambda bad: type(bad).__name__
)
def test_the_path_of_a_refused_value_starts_inside_the_transition(before, bad):
    with pytest.raises(EncodeError) as caught:
        encode_chunk([*before, {"a": {"b": (1, bad)}}])
    assert caught.value.path == "a/b/1"


def test_a_refused_column_is_named_by_its_path():
    with pytest.raises(EncodeError) as caught:
        encode_chunk([{"a": [1], "o": {"x": np.array([None, 1])}} for _ in range(3)])
    assert caught.value.path == "o/x"


def test_a_transition_that_contains_itself_is_refused():
    row = {"a": np.zeros(3)}
    row["self"] = row
    with pytest.raises(EncodeError, match="contains itself") as caught:
        encode_chunk([row, row])
    assert caught.value.path.startswith("self/self")


def test_refused_meta_is_named():
    with pytest.raises(EncodeError) as caught:
        encode_chunk([1, 2], {"what": object()})
    assert caught.value.path == "meta"


def test_deeply_nested_transitions_travel_as_rows():
    row = 1.5
    for _ in range(200):
        row = {"a": row}
    result = received([row, row])
    assert result.columns is None
    assert result.rows() == [row, row]


def test_another_frame_is_no_chunk():
    with pytest.raises(DecodeError, match="kind 'tree'"):
        decode_chunk(bytes(encode([1, 2])))


def test_received_rows_are_views_of_the_columns():
    result = received([{"a": np.zeros(3)}, {"a": np.ones(3)}])
    result.rows()[1]["a"][:] = 7
    assert (result.columns["a"][1] == 7).all()


def test_a_chunk_is_a_plain_value():
    one = Chunk(2, None, {"a": 1}, _rows=[1, 2])
    assert one.tail(1) == Chunk(1, None, {"a": 1}, _rows=[2])
    assert one.tail(0) == one
    assert one.tail(9).rows() == []
