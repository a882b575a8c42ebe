"""A tree that is not as expected is refused, and the first place named that differs."""

from collections import OrderedDict

import numpy as np
import pytest
from codec_trees import properties, trees
from hypothesis import given

from agentlace.codec import Signature, decode, encode
from agentlace.errors import SchemaMismatch

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
