"""Every accepted value comes back as it went; every other one is refused by its path."""

import enum
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from codec_trees import (
    LAYOUTS,
    all_dtypes,
    array_leaves,
    arrays,
    assert_same,
    extra_dtypes,
    hashable,
    memory_below,
    properties,
    random_array,
    round_trip,
    scalars,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st

from agentlace.codec import decode, encode
from agentlace.codec.tree import MAX_BIGINT_DIGITS, MAX_EMPTY_ITEMS
from agentlace.errors import EncodeError


@properties(400)
@given(trees)
def test_any_tree_comes_back_exactly(tree):
    assert_same(round_trip(tree), tree)


@properties(100)
@given(trees)
def test_received_arrays_are_writable(tree):
    received = round_trip(tree)
    assert all(array.flags.writeable for array in array_leaves(received))


@properties(400)
@given(arrays)
def test_any_array_comes_back_exactly(array):
    assert_same(round_trip(array), array)


@properties(200)
@given(scalars)
def test_numpy_scalars_stay_numpy_scalars(scalar):
    assert_same(round_trip({"scalar": scalar})["scalar"], scalar)


@properties(100)
@given(st.dictionaries(hashable, st.integers(0, 3), max_size=5))
def test_keys_of_any_hashable_type(tree):
    assert_same(round_trip(tree), tree)


@pytest.mark.parametrize("dtype", all_dtypes(), ids=str)
def test_every_dtype_in_every_layout(dtype):
    for shape in [(), (0,), (5,), (4, 3), (2, 0, 3), (1, 2, 3, 2)]:
        array = random_array(dtype, shape)
        tree = {name: layout(array) for name, layout in LAYOUTS.items()}
        received = round_trip(tree)
        assert_same(received, tree)
        assert all(array.flags.c_contiguous for array in received.values())
        assert all(array.flags.writeable for array in received.values())


@pytest.mark.parametrize("dtype", all_dtypes(), ids=str)
def test_large_arrays_of_every_dtype(dtype):
    array = random_array(dtype, (3, 700))
    assert_same(round_trip([array, array.T, array[:, ::-3]]), [array, array.T, array[:, ::-3]])


def test_types_that_are_close_are_not_mixed_up():
    tree = [
        *(1, True, 1.0, np.float32(1), np.float64(1), np.int64(1), np.bool_(True), np.array(1)),
        *("1", b"1", np.str_("1"), np.bytes_(b"1"), np.array("1"), np.void(b"1")),
        *((1,), [1], {1}, frozenset({1}), {1: 1}, (), [], set(), frozenset(), {}),
    ]
    assert_same(round_trip(tree), tree)


def test_numpy_strings_keep_the_zeros_at_their_end():
    tree = [np.bytes_(b"a\0\0"), np.str_("b\0"), np.bytes_(b""), np.str_(""), np.str_("\ud800")]
    assert_same(round_trip(tree), tree)


def test_a_received_structured_scalar_is_writable():
    scalar = np.zeros(1, [("x", "<f4"), ("y", "<i8")])[0]
    received = round_trip(scalar)
    received["x"] = 2.5
    assert received["x"] == 2.5


def test_big_integers_up_to_the_bound():
    largest = 16 ** (MAX_BIGINT_DIGITS - 2) - 1
    assert round_trip([largest, 2**64, -(2**63) - 1]) == [largest, 2**64, -(2**63) - 1]
    with pytest.raises(EncodeError) as caught:
        encode({"n": [0, largest + 1]})
    assert caught.value.path == "n/1"


def test_an_array_of_the_file_travels_as_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "array", np.float32, "w+", shape=(50, 40))
    mapped[:] = np.arange(40)
    assert_same(round_trip(mapped), np.array(mapped))
    assert_same(round_trip(mapped[::3, 1:]), np.array(mapped[::3, 1:]))


def test_dicts_of_any_class_travel_as_dicts():
    assert_same(round_trip(OrderedDict(b=1, a=OrderedDict(c=2))), {"b": 1, "a": {"c": 2}})
    assert_same(round_trip([defaultdict(int, a=1), Counter("aab")]), [{"a": 1}, {"a": 2, "b": 1}])


def test_an_object_array_without_dimensions_travels_as_what_it_holds():
    held = {"image": np.arange(2000.0), "succeed": np.bool_(True), "episode": {"l": (20,)}}
    box = round_trip({"info": np.asarray(held)})["info"]
    assert (box.shape, box.dtype) == ((), object)
    assert_same(box.item(), held)
    with pytest.raises(EncodeError, match=r"info/b: a builtins\.object may not travel"):
        encode({"info": np.asarray({"a": 1, "b": object()})})


def test_the_order_of_keys_is_kept():
    assert list(round_trip(dict.fromkeys("zebra"))) == list("zebra")


def test_one_array_in_two_places_travels_twice():
    array = np.arange(2000.0)
    first, second = round_trip((array, array))
    assert_same([first, second], [array, array])
    assert not np.shares_memory(first, second)


def test_dtypes_of_the_extra_package_keep_their_names():
    dtypes = extra_dtypes()
    if not dtypes:
        pytest.skip("ml_dtypes is not installed")
    for dtype in dtypes:
        values = np.array([0, 1, 2, -1, 3]).astype(dtype)
        received = round_trip([values, values[1]])
        assert received[0].dtype == dtype
        assert type(received[1]) is dtype.type
        assert received[0].astype(np.float32).tolist() == values.astype(np.float32).tolist()


def test_structured_dtypes_are_nested_up_to_a_bound():
    dtype = np.dtype("<f4")
    for _ in range(32):
        dtype = np.dtype([("x", dtype)])
    assert_same(round_trip(random_array(dtype, (2,))), random_array(dtype, (2,)))
    with pytest.raises(EncodeError, match="may not travel"):
        encode(np.zeros(2, [("x", dtype)]))


def test_an_extra_dtype_of_foreign_byte_order_is_refused():
    if not extra_dtypes():
        pytest.skip("ml_dtypes is not installed")
    with pytest.raises(EncodeError, match="may not travel"):
        encode(np.zeros(3, extra_dtypes()[0].newbyteorder(">")))


def test_jax_arrays_come_back_as_numpy_arrays():
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.bfloat16(1.5), "i": jnp.int32(7)}
    received = round_trip(tree)
    assert_same(received, {key: np.array(value) for key, value in tree.items()})
    assert received["b"].dtype.name == "bfloat16"
    received["w"][0, 0] = 9


def test_jax_arrays_that_hold_no_values_are_refused():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    deleted = jax.numpy.arange(3.0)
    deleted.delete()
    with pytest.raises(EncodeError, match="deleted") as caught:
        encode({"params": [deleted]})
    assert caught.value.path == "params/0"
    refused = []

    @jax.jit
    def traced(x):
        with pytest.raises(EncodeError) as inner:
            encode({"x": x})
        refused.append(inner.value.path)
        return x

    traced(1.0)
    assert refused == ["x"]


def test_frozen_dicts_come_back_as_frozen_dicts():
    flax = pytest.importorskip("flax.core", reason="flax is not installed")
    tree = flax.FrozenDict({"dense": {"kernel": np.ones((2, 3), np.float32)}, "step": 3})
    received = round_trip({"params": tree})["params"]
    assert isinstance(received, flax.FrozenDict)
    assert_same(received.unfreeze(), tree.unfreeze())
    with pytest.raises(EncodeError) as caught:
        encode({"params": flax.FrozenDict({"dense": {"kernel": object()}})})
    assert caught.value.path == "params/dense/kernel"


def gymnasium_spaces():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")
    box = spaces.Box(-1.0, np.array([1.0, np.inf], np.float32), dtype=np.float32)
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    return [
        *(box, image, spaces.Box(-np.inf, np.inf, (2, 0), np.float64)),
        *(spaces.Box(0.0, 1.0, ()), spaces.Box(-2, 2, (3,), np.float16)),
        *(spaces.Box(0, 1, (3,), np.bool_), spaces.Box(-5, 9, (2,), np.int16)),
        *(spaces.Discrete(5), spaces.Discrete(4, start=-2)),
        *(spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32)),
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
        *(spaces.MultiBinary(4), spaces.MultiBinary((2, 3)), spaces.MultiBinary([5])),
        *(spaces.Text(8), spaces.Text(max_length=3, min_length=0, charset="zaß")),
        *(spaces.Tuple((box, spaces.Discrete(2))), spaces.Tuple(())),
        *(spaces.Dict(b=box, a=spaces.Dict(image=image)), spaces.Dict()),
        *(spaces.Sequence(box), spaces.Sequence(spaces.Discrete(3), stack=True)),
        *(spaces.Graph(box, None), spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3))),
        *([spaces.OneOf((box, spaces.Discrete(2)))] if hasattr(spaces, "OneOf") else []),
    ]


def test_spaces_of_every_class():
    for space in gymnasium_spaces():
        received = round_trip({"space": space})["space"]
        assert type(received) is type(space)
        assert received == space
        assert (received.dtype, received.shape) == (space.dtype, space.shape)
        received.seed(3)
        space.seed(3)
        assert_same(encodable(received.sample()), encodable(space.sample()))


def encodable(sample):
    """A sample of a Graph is a named tuple."""
    if isinstance(sample, tuple):
        return tuple(map(encodable, sample))
    return sample


def test_an_integer_box_without_bounds_stays_without():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")
    left = spaces.Box(-np.inf, 5, (2,), np.int32)
    right = spaces.Box(0, np.inf, (2,), np.int32)
    left, right = round_trip((left, right))
    assert (left.bounded_below.tolist(), left.bounded_above.tolist()) == ([False] * 2, [True] * 2)
    assert (right.bounded_below.tolist(), right.bounded_above.tolist()) == ([True] * 2, [False] * 2)


def test_a_dict_space_keeps_the_order_of_its_keys():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")
    space = spaces.Dict(OrderedDict(z=spaces.Discrete(2), a=spaces.Discrete(3)))
    assert list(round_trip(space).spaces) == ["z", "a"]


def test_a_space_of_another_class_is_refused():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")

    class Simplex(spaces.Box):
        pass

    with pytest.raises(EncodeError, match="not one of Gymnasium's own") as caught:
        encode({"space": (1, Simplex(0, 1, (2,)))})
    assert caught.value.path == "space/1"


def test_spaces_that_copy_too_much_are_refused():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")
    with pytest.raises(EncodeError, match="holds too much"):
        encode({"space": spaces.Graph(spaces.Box(0, 1, (2 * MAX_EMPTY_ITEMS,)), None)})
    assert round_trip(spaces.Graph(spaces.Box(0, 1, (1000,)), None)).node_space.shape == (1000,)


class Tensor:
    """Looks like an array of a library that the codec does not know."""

    shape, dtype = (2,), "float32"

    def __array__(self, dtype=None, copy=None):
        return np.zeros(2, np.float32)


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        *(object(), lambda: None, print, int, np, Ellipsis, NotImplemented, 1j, range(3)),
        *(Tensor(), Color.RED, Text("a"), Point(1, 2), Decimal(1), Path("."), iter([])),
        *(np.array(lambda: None, object), deque([1]), {}.keys(), ValueError("x"), threading.Lock()),
        *(np.array([None]), np.array([1, "a"], object), np.array([[1], [1, 2]], object)),
        np.zeros(2, [("x", "<f4"), ("o", object)]),
        np.zeros(2, [("inner", [("o", object, (2,))])])[0],
        *(np.ma.masked_array([1, 2], [True, False]), np.ma.masked),
        *(np.rec.array([(1, 2.0)]), np.dtype("f4"), np.random.default_rng(0)),
        *("\ud800", 1 << 40_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_by_its_path(value):
    with pytest.raises(EncodeError) as caught:
        encode({"observations": {"wrist": [0, np.zeros(3), (1, value)]}})
    assert caught.value.path == "observations/wrist/2/1"
    assert "observations/wrist/2/1" in str(caught.value)


@pytest.mark.parametrize("tree", [object(), np.array([None]), Point(1, 2)], ids=["a", "b", "c"])
def test_a_refused_root_has_an_empty_path(tree):
    with pytest.raises(EncodeError, match="cannot encode the value") as caught:
        encode(tree)
    assert caught.value.path == ""


@pytest.mark.parametrize(
    "key",
    [Color.RED, Point(1, 2), 1j, (1, object()), 1 << 40_000],
    ids=lambda key: type(key).__name__,
)
def test_a_refused_key_is_named_by_its_dict(key):
    with pytest.raises(EncodeError) as caught:
        encode({"a": [{"b": {"good": 1, key: 2}}]})
    assert caught.value.path == "a/0/b"


def test_new_string_arrays_are_refused():
    if not hasattr(np.dtypes if hasattr(np, "dtypes") else np, "StringDType"):
        pytest.skip("this numpy has no StringDType")
    with pytest.raises(EncodeError) as caught:
        encode({"names": np.array(["a"], np.dtypes.StringDType())})
    assert caught.value.path == "names"


def lists(depth, innermost=None):
    tree = innermost
    for _ in range(depth):
        tree = [tree]
    return tree


def tuples(depth, innermost=None):
    tree = innermost
    for _ in range(depth):
        tree = (tree,)
    return tree


@pytest.mark.parametrize("nest", [lists, tuples])
def test_nesting_up_to_500(nest):
    received = round_trip(nest(500, 5))
    for _ in range(500):
        (received,) = received
    assert received == 5


@pytest.mark.parametrize("nest", [lists, tuples])
def test_nesting_beyond_the_bound_is_refused(nest):
    with pytest.raises(EncodeError, match="nested too deeply") as caught:
        encode({"deep": nest(2000)})
    assert caught.value.path.startswith("deep/0/0/0")


def test_lists_and_tuples_nested_in_turns_share_one_bound():
    tree = None
    for _ in range(10):
        tree = (lists(500, tree),)
    with pytest.raises(EncodeError, match="nested too deeply"):
        encode(tree)


def test_nesting_needs_no_large_stack():
    frames = []
    before = threading.stack_size(512 << 10)
    try:
        thread = threading.Thread(target=lambda: frames.append(round_trip(tuples(500))))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert len(frames) == 1


def cycles():
    a_list, a_dict, inner, key_value = [], {}, [], {"k": []}
    a_list.append(a_list)
    a_dict["self"] = a_dict
    inner.append(({"x": inner},))
    key_value["k"] += [key_value, key_value]
    return [a_list, a_dict, inner, key_value]


@pytest.mark.parametrize("number", range(4))
def test_a_tree_that_contains_itself_is_refused(number):
    with pytest.raises(EncodeError, match="contains itself") as caught:
        encode({"outer": cycles()[number]})
    assert caught.value.path.startswith("outer/")


def test_the_first_of_several_bad_places_is_named():
    with pytest.raises(EncodeError) as caught:
        encode({"good": [1], "bad": [1, object()], "worse": lambda: None})
    assert caught.value.path == "bad/1"


def test_arrays_that_take_no_bytes_are_bounded():
    fits = np.zeros((MAX_EMPTY_ITEMS, 0), np.float32)
    assert round_trip(fits).shape == fits.shape
    assert round_trip(np.zeros((0, 1000), np.float32)).shape == (0, 1000)
    for array in (np.zeros((MAX_EMPTY_ITEMS + 1, 0)), np.zeros(MAX_EMPTY_ITEMS + 1, "V0")):
        with pytest.raises(EncodeError, match="without bytes") as caught:
            encode([array])
        assert caught.value.path == "0"


def test_arrays_of_too_many_dimensions_are_refused():
    assert round_trip(np.zeros((1,) * 32)).shape == (1,) * 32
    try:
        array = np.zeros((1,) * 33)
    except ValueError:
        pytest.skip("this numpy has no more than 32 dimensions")
    with pytest.raises(EncodeError, match="33 dimensions"):
        encode(array)


def test_tuples_inside_tuples_do_not_multiply_memory():
    with memory_below(2 << 20):
        assert len(round_trip(tuples(400, "x" * 100_000))) == 1


def test_two_threads_may_encode_at_once():
    tree = {"a": np.arange(5000), "b": [(1, {2}), np.float32(3)]}
    expected, wrong = bytes(encode(tree)), []

    def work():
        for _ in range(200):
            if bytes(encode(decode(expected).tree)) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
