"""What the codec's tests share: trees and arrays of every kind, exact comparison, forged frames."""

import struct
import tracemalloc
import zlib
from contextlib import contextmanager

import msgpack
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from agentlace.codec import decode, encode
from agentlace.codec.frame import WHOLE_CRC_BYTES

MEBI = 1 << 20

NUMPY_DTYPES = [
    *("?", "i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", "<i8", ">i8", "<u8", ">u8"),
    *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble", "<c8", ">c8", "<c16", "clongdouble"),
    *("<M8[s]", ">M8[ns]", "<M8[D]", "<M8[25s]", "<M8", "<m8[us]", ">m8[3ms]", "<m8"),
    *("S0", "S1", "S7", "<U0", "<U1", ">U3", "V0", "V1", "V5"),
]
EXTRA_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"]
STRUCTURED_DTYPES = [
    np.dtype([]),
    np.dtype([("x", "<f4")]),
    np.dtype([("x", "i1"), ("y", ">f8")], align=True),
    np.dtype([("x", "<f4", (2, 3)), ("s", "<U2", (1,)), ("when", "<M8[s]")]),
    np.dtype([("inner", [("a", "u1"), ("b", "V3", (2,))], (2,)), ("s", "S0")]),
    np.dtype([(("a title", "x"), "<f4"), ("y", "?")]),
    np.dtype({"names": ["b", "a"], "formats": ["<f4", "<i4"], "offsets": [4, 0]}),
    np.dtype({"names": ["a", "b"], "formats": ["<u4", "<u2"], "offsets": [0, 2], "itemsize": 9}),
    np.dtype({"names": [], "formats": [], "itemsize": 8}),
]


def properties(max_examples):
    """Settings of a property test: the same examples on every run, no clock."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def extra_dtypes():
    """The dtypes of ml_dtypes, none where it is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return []
    return [np.dtype(getattr(ml_dtypes, name)) for name in EXTRA_DTYPES]


def all_dtypes():
    extra = extra_dtypes()
    mixed = [np.dtype([("x", extra[0], (2,)), ("y", "<i2")])] if extra else []
    return [*map(np.dtype, NUMPY_DTYPES), *extra, *STRUCTURED_DTYPES, *mixed]


def random_array(dtype, shape, seed=0):
    """An array of random bytes; as a field, a dtype of size 0 keeps its size."""
    array = np.zeros(shape, [("", dtype)])["f0"]
    if array.nbytes == 0:
        return array
    raw = np.random.default_rng(seed).bytes(array.nbytes)
    return np.frombuffer(bytearray(raw), dtype).reshape(shape)


LAYOUTS = {
    "C": lambda a: a,
    "Fortran": lambda a: np.asfortranarray(a) if a.ndim else a,
    "transposed": lambda a: a.T,
    "every second": lambda a: a[::2] if a.ndim else a,
    "last axis": lambda a: a[..., 1:] if a.ndim else a,
    "reversed": lambda a: a[::-1] if a.ndim else a,
    "all reversed": lambda a: a[(..., *[slice(None, None, -1)] * a.ndim)],
    "broadcast": lambda a: np.broadcast_to(a, (3, *a.shape)),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
arrays = st.builds(
    lambda dtype, shape, seed, layout: LAYOUTS[layout](random_array(dtype, shape, seed)),
    st.sampled_from(all_dtypes()),
    shapes,
    st.integers(0, 99),
    st.sampled_from(sorted(LAYOUTS)),
)
scalars = (
    st.builds(
        lambda dtype, seed: random_array(dtype, (), seed)[()],
        st.sampled_from([dtype for dtype in all_dtypes() if dtype.kind not in "US"]),
        st.integers(0, 99),
    )
    | st.builds(np.str_, st.text(max_size=3))
    | st.builds(np.bytes_, st.binary(max_size=3))
)
floats = st.floats() | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf")])
integers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**63, 2**64, -(2**63)])
plain = st.none() | st.booleans() | integers | floats | st.text(max_size=5) | st.binary(max_size=5)
hashable = st.recursive(
    st.none()
    | st.booleans()
    | integers
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(np.float32, st.floats(width=32, allow_nan=False))
    | st.builds(np.int16, st.integers(-9, 9)),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
keys = st.text(max_size=5) | integers | st.tuples(st.text(max_size=2), st.integers()) | hashable
trees = st.recursive(
    plain | scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
    ),
    max_leaves=12,
)


def assert_same(actual, expected, where="tree"):
    """Compare exactly: types, dtypes, shapes, bits; NaN is NaN."""
    assert type(actual) is type(expected), where
    if isinstance(expected, np.ndarray | np.generic):
        _assert_same_array(actual, expected, where)
    elif isinstance(expected, dict):
        assert_same(list(actual), list(expected), f"{where}'s keys")
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}/{key!r}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{where}/{i}")
    elif isinstance(expected, set | frozenset):
        typed = {(type(item), item) for item in expected}
        assert {(type(item), item) for item in actual} == typed, where
    elif isinstance(expected, float):
        assert struct.pack("d", actual) == struct.pack("d", expected), where
    else:
        assert actual == expected, where


def _assert_same_array(actual, expected, where):
    assert actual.dtype == expected.dtype, where
    assert actual.dtype.itemsize == expected.dtype.itemsize, where
    assert actual.shape == expected.shape, where
    names = expected.dtype.names
    if names is None:
        assert actual.tobytes() == expected.tobytes(), where
    for name in names or ():  # what lies between fields need not travel
        _assert_same_array(actual[name], expected[name], f"{where}[{name!r}]")


def array_leaves(tree):
    """All arrays of a tree."""
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from array_leaves(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from array_leaves(value)


def round_trip(tree):
    return decode(bytes(encode(tree))).tree


def forge(header, body=b"", flag=None):
    """A frame with a valid checksum around any header and body."""
    nbytes = 20 + len(header) + len(body)
    whole = nbytes <= WHOLE_CRC_BYTES if flag is None else flag
    lengths = struct.pack("<IQ", len(header), nbytes)
    covered = lengths + header + (body if nbytes <= WHOLE_CRC_BYTES else b"")
    return struct.pack("<2sBBI", b"AL", 1, whole, zlib.crc32(covered)) + lengths + header + body


def forge_tree(packed, leaves=(), body=b"", kind="tree", meta=None):
    """A frame with a valid checksum around any packed tree and list of leaves."""
    header = msgpack.packb([kind, meta or {}, list(leaves), packed], use_bin_type=True)
    return forge(header, bytes(-(20 + len(header)) % 64) + body if body else b"")


def forge_chunk(tree, n, kinds, leaves=(), body=b""):
    """A chunk's frame with a valid checksum, whatever its tree and count are."""
    meta = {"n": n, "kinds": kinds, "meta": {}}
    return forge_tree(msgpack.packb(tree), leaves, body, "chunk", meta)


def leaf(number):
    """A reference to a leaf."""
    return msgpack.ExtType(1, number.to_bytes(4, "little"))


@contextmanager
def memory_below(nbytes):
    """Fail if Python and numpy together allocate more than nbytes inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < nbytes, f"{peak} bytes were allocated"
