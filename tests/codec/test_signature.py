"""A tree that is not as expected is refused, and the first place named that differs."""

from collections import OrderedDict

import numpy as np
import pytest
from codec_trees import properties, trees
from hypothesis import given

from agentlace.codec import ArraySpec, Signature, decode, encode
from agentlace.errors import DecodeError, SchemaMismatch

EXPECTED = {
    "actor": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)},
    "scale": np.float32(1),
    "layers": [np.zeros(2), (np.zeros(1, np.int8),)],
    "step": 3,
    "name": "policy",
    "nothing": None,
}


class Leaf:
    """What stands for an array, as jax.ShapeDtypeStruct does."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


def changed(path, value):
    """Return EXPECTED with another value in one place."""
    tree = decode(encode(EXPECTED).copy()).tree
    *parents, last = path
    place = tree
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return tree


def test_the_same_tree_fits():
    Signature(EXPECTED).check(decode(encode(EXPECTED).copy()).tree)
    Signature(EXPECTED).check(OrderedDict(EXPECTED))
    Signature(EXPECTED).check(changed(["step"], 4))
    reordered = dict(reversed(EXPECTED.items()))
    Signature(reordered).check(EXPECTED)


@properties(50)
@given(trees)
def test_every_tree_fits_itself(tree):
    Signature(tree).check(decode(encode(tree).copy()).tree)


@pytest.mark.parametrize(
    ("path", "value", "where", "reason"),
    [
        (["actor", "kernel"], np.zeros((4, 3), np.float32), "actor/kernel", r"\(4, 3\)"),
        (["actor", "kernel"], np.zeros((3, 4), np.float64), "actor/kernel", "float64 of shape"),
        (["actor", "kernel"], 1.0, "actor/kernel", "a float, float32 of shape"),
        (["actor", "kernel"], {"w": 1}, "actor/kernel", "a dict, float32 of shape"),
        (["actor", "bias"], KeyError, "actor/bias", "missing, there is kernel"),
        (["actor", "extra"], np.zeros(1), "actor/extra", "not expected, only kernel, bias"),
        (["actor"], np.zeros(3), "actor", "a dict was expected"),
        (["scale"], np.zeros(1, np.float32), "scale", r"shape \(1,\)"),
        (["layers", 0], np.zeros(3), "layers/0", r"\(3,\)"),
        (["layers", 1], [np.zeros(1, np.int8)], "layers/1", "a list of 1, a tuple of 1 was"),
        (["layers"], [np.zeros(2)], "layers", "a list of 1, a list of 2 was expected"),
        (["layers"], (np.zeros(2), (np.zeros(1, np.int8),)), "layers", "a tuple of 2"),
        (["step"], 3.0, "step", "a float, a int was expected"),
        (["step"], True, "step", "a bool"),
        (["name"], None, "name", "a NoneType"),
        (["nothing"], 0, "nothing", "a int"),
    ],
)
def test_each_difference_is_named(path, value, where, reason):
    with pytest.raises(SchemaMismatch, match=reason) as caught:
        Signature(EXPECTED).check(changed(path, value))
    assert caught.value.path == where
    assert str(caught.value).startswith(f"{where}: ")


def test_the_first_of_several_is_named():
    tree = changed(["layers", 0], np.zeros(9))
    tree["scale"] = 1
    with pytest.raises(SchemaMismatch) as caught:
        Signature(EXPECTED).check(tree)
    assert caught.value.path == "scale"


def test_a_bare_array_and_a_description():
    signature = Signature(Leaf((2, 3), "float32"))
    signature.check(np.zeros((2, 3), np.float32))
    with pytest.raises(SchemaMismatch, match="the tree: float32 of shape"):
        signature.check(np.zeros((3, 2), np.float32))
    with pytest.raises(SchemaMismatch, match="a dict, float32 of shape"):
        signature.check({})


def test_jax_and_flax():
    jax = pytest.importorskip("jax")
    core = pytest.importorskip("flax.core")
    parameters = {"w": jax.numpy.zeros((2, 2), "bfloat16"), "b": jax.numpy.zeros(2)}
    for expected in (parameters, jax.eval_shape(lambda: parameters), core.freeze(parameters)):
        signature = Signature(expected)
        for tree in (parameters, core.freeze(parameters)):
            signature.check(decode(encode(tree).copy()).tree)
        with pytest.raises(SchemaMismatch, match="w: float32 of"):
            signature.check({**parameters, "w": np.zeros((2, 2), np.float32)})


def test_a_tree_that_contains_itself():
    tree = {}
    tree["self"] = tree
    with pytest.raises(SchemaMismatch, match="contains itself"):
        Signature(tree)


def test_many_keys_are_not_all_listed():
    with pytest.raises(SchemaMismatch, match="k0, k1, k2, k3, k4 and 95 more") as caught:
        Signature({"x": 1}).check({f"k{i}": 1 for i in range(100)})
    assert caught.value.path == "x"


# -- declared, with free sizes, and sent ----------------------------------------------------------

DECLARED = {
    "wrist": ArraySpec((None, -1, 3), "uint8"),
    "state": ArraySpec(8, np.float32),
    "prompt": str,
    "speed": float,
    "count": int,
    "scale": np.float32,
    "rest": (np.zeros(2), [True]),
}
FITTING = {
    "wrist": np.zeros((480, 640, 3), np.uint8),
    "state": np.zeros(8, np.float32),
    "prompt": "pick up the cube",
    "speed": 0.5,
    "count": np.int64(3),
    "scale": np.float32(1),
    "rest": (np.ones(2), [False]),
}


@pytest.fixture(params=["declared", "sent"])
def declared(request):
    """The signature, and what the other end makes of it."""
    signature = Signature(DECLARED)
    if request.param == "sent":
        sent = decode(encode(signature.describe()).copy()).tree
        signature = Signature.described(sent)
    return signature


@pytest.mark.parametrize(
    "other",
    [
        {"wrist": np.zeros((1, 0, 3), np.uint8)},
        {"speed": 1},
        {"speed": np.float64(1)},
        {"count": 7},
    ],
    ids=repr,
)
def test_free_sizes_and_numbers_of_a_kind_fit(declared, other):
    declared.check(FITTING)
    declared.check({**FITTING, **other})


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            {"wrist": np.zeros((480, 640, 4), np.uint8)},
            r"uint8 of shape \(\*, \*, 3\) was expected",
        ),
        ({"wrist": np.zeros((1, 480, 640, 3), np.uint8)}, r"uint8 of shape \(1, 480, 640, 3\)"),
        ({"wrist": np.zeros((480, 640, 3), np.float32)}, "float32 of shape"),
        ({"state": np.zeros(7, np.float32)}, r"\(7,\), float32 of shape \(8,\) was expected"),
        ({"prompt": b"pick"}, "a bytes, a str was expected"),
        ({"speed": True}, "a bool, a float was expected"),
        ({"count": 1.0}, "a float, a int was expected"),
        ({"count": np.zeros(1, int)}, "a int was expected"),
        ({"scale": 1.0}, r"a float, float32 of shape \(\) was expected"),
        ({"rest": (np.ones(2), [1])}, "a int, a bool was expected"),
    ],
    ids=repr,
)
def test_what_was_declared_refuses_the_rest(declared, other, reason):
    with pytest.raises(SchemaMismatch, match=reason):
        declared.check({**FITTING, **other})


def test_a_signature_shows_its_tree(declared):
    assert declared.tree == {
        "wrist": ArraySpec((None, None, 3), "uint8"),
        "state": ArraySpec((8,), "float32"),
        "prompt": "str",
        "speed": "float",
        "count": "int",
        "scale": ArraySpec((), "float32"),
        "rest": (ArraySpec((2,), "float64"), ["bool"]),
    }


@properties(50)
@given(trees)
def test_what_is_sent_of_every_tree_fits_it(tree):
    sent = decode(encode(Signature(tree).describe()).copy()).tree
    Signature.described(sent).check(decode(encode(tree).copy()).tree)


@pytest.mark.parametrize(
    "values",
    [
        *(None, 3, [], ["array"], ["array", "<f4"], ["array", "<f4", 3], ["array", "<f4", [-5]]),
        *(["array", "|O", [1]], ["array", "<f4", ["x"]], ["array", "<f4", [1] * 100]),
        *(["value", 3], ["other", "str"], ["dict", 3], ["list", None], ["dict", {"a": 1}]),
    ],
    ids=repr,
)
def test_what_describes_no_signature_is_refused(values):
    with pytest.raises(DecodeError):
        Signature.described(values)


def test_a_description_nested_without_end_is_refused():
    values = ["value", "int"]
    for _ in range(200):
        values = ["list", [values]]
    with pytest.raises(DecodeError, match="too deeply"):
        Signature.described(values)


def test_a_size_is_a_number_or_free():
    with pytest.raises(ValueError, match="None for any"):
        ArraySpec((3, -2), "float32")
