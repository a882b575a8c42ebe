"""What a hostile or broken peer sends, as strategies: frames, requests, entries, presence, …"""

import json
import math
import struct
import zlib

import msgpack
import numpy as np
from hypothesis import strategies as st

from agentlace.codec import encode, encode_chunk
from agentlace.codec.frame import WHOLE_CRC_BYTES
from agentlace.codec.tree import Mark

PREFIX_BYTES = 20
KINDS = ["tree", "chunk", "request", "reply", "obs", "weights", "mark", "", "x" * 300]

_NUMBERS = [0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, 1e300]
numbers = st.sampled_from([*_NUMBERS, math.nan, math.inf, -math.inf, True])
odd = st.one_of(
    st.none(),
    numbers,
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["x" * 5000, b"\xff" * 50, "\x00", "a\nb", "al:{x}", [], {}, [[]], {"a": 1}]),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=6)),
)
values = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)
dtypes = st.one_of(
    st.sampled_from(["<f4", "<f8", "|u1", "<i8", "bfloat16", "|V0", "|S0", "<U1", "|b1", "<M8[s]"]),
    st.sampled_from(["O", "|O", "<f3", "|V2147483647", "<U536870911", "x" * 2000, "float8_e4m3"]),
    st.builds(
        lambda size, offset, inner, shape: [size, [["f", offset, inner, shape, None]]],
        st.sampled_from([0, 4, 8, 2**31 - 1, -4]),
        st.sampled_from([0, 4, -1, 2**31]),
        st.sampled_from(["<f4", "|V0", [4, [["g", 0, "<f4", [], None]]]]),
        st.sampled_from([[], [2], [0], [2**31], [-1]]),
    ),
    odd,
)
shapes = st.one_of(
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from([[2**40], [2**62], [0, 2**62], [-1], [2**31, 2**31], [1] * 40, [0] * 40]),
    st.sampled_from([[2**14], [2**20], [2**14, 0], [2**20, 0], [0, 2**20]]),
    st.lists(odd, max_size=2),
    odd,
)
leaf_lists = st.lists(st.tuples(dtypes, shapes).map(list) | odd, max_size=4)
bombs = st.one_of(
    st.builds(
        lambda first, count: first + count.to_bytes(4, "big"),
        st.sampled_from([b"\xdd", b"\xdf", b"\xdb", b"\xc6"]),
        st.sampled_from([2, 60_000, 2**20, 2**32 - 1]),
    ),
    st.builds(
        lambda opening, depth, end: opening * depth + end,
        st.sampled_from([b"\x91", b"\x81", b"\x81\xa1k", b"\x92\xc7\x00\x03", b"\xdc\xea\x60"]),
        st.sampled_from([10, 400, 1000, 1030, 20_000]),
        st.sampled_from([b"\xc0", b"", b"\xc0" * 2000]),
    ),
    st.builds(lambda n: msgpack.packb([0] * n), st.sampled_from([1000, 30_000])),
    st.builds(lambda n: msgpack.packb({i: i for i in range(n)}), st.sampled_from([500, 5000])),
    st.builds(lambda n: msgpack.packb([msgpack.ExtType(6, b"f" * n)] * 20), st.just(4096)),
)


def leaf(number):
    return msgpack.ExtType(1, number.to_bytes(4, "little"))


references = st.integers(0, 4).map(leaf)
marks = st.integers(2, 11).map(lambda code: msgpack.ExtType(code, b""))
trees = st.recursive(
    odd | references | marks,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.builds(lambda mark, items: [mark, *items], marks, st.lists(inner, max_size=4))
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


def packed(value):
    """Return a value's msgpack, as far as it can be packed."""
    try:
        return msgpack.packb(value)
    except (OverflowError, ValueError, TypeError):
        return b"\xc0"


def sealed(header, body=b"", flag=None, version=1, magic=b"AL"):
    """Return a frame whose checksum is right."""
    nbytes = PREFIX_BYTES + len(header) + len(body)
    whole = nbytes <= WHOLE_CRC_BYTES if flag is None else flag
    lengths = struct.pack("<IQ", len(header), nbytes)
    covered = lengths + header + (body if nbytes <= WHOLE_CRC_BYTES else b"")
    return (
        struct.pack("<2sBBI", magic, version, whole, zlib.crc32(covered))
        + covered[:12]
        + (header + body)
    )


def forged(kind, meta, leaves, tree, body):
    """Return a frame with a right checksum around any content."""
    inner = tree if type(tree) is bytes else packed(tree)
    header = packed([kind, meta, leaves, inner])
    return sealed(header, bytes(-(PREFIX_BYTES + len(header)) % 64) + body if body else b"")


bodies = st.sampled_from([b"", bytes(4), bytes(64), bytes(range(256)) * 2, bytes(40_000)])
contents = trees | bombs


def frames_of(kinds, metas):
    """Return a strategy for frames that pass the checksum, with these kinds and metas."""
    return st.builds(forged, kinds, metas, leaf_lists | odd, contents, bodies)


def _transitions(n, size):
    frames = [np.full(size, i, np.float32) for i in range(n + 1)]
    return [{"o": frames[i], "next_o": frames[i + 1], "r": float(i)} for i in range(n)]


VALID = [
    bytes(frame)
    for frame in (
        encode({"a": np.arange(5.0), "b": (1, {2}, "x"), "c": np.float32(1), "d": 1 << 70}),
        encode({"a": np.arange(5000.0), "b": np.ones((2, 3))}),
        encode_chunk(_transitions(3, 3), {"policy": [1, 2]}),
        encode_chunk(_transitions(8, 1000)),
        encode_chunk([*_transitions(2, 130), *_transitions(1, 130)]),
        encode_chunk(["a", (1, np.zeros(2))]),
        encode({"move": 1}, "request", {"what": "act", "name": "move"}),
        encode(None, "reply", {"id": "x", "status": "ok"}),
    )
]


def _damaged(frame, flips, end, extra, seal):
    data = bytearray(frame)
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    data = data[: len(data) - end % len(data)] + extra
    if seal and len(data) > PREFIX_BYTES:
        size = min(struct.unpack_from("<I", data, 8)[0], len(data) - PREFIX_BYTES)
        header, body = bytes(data[20 : 20 + size]), bytes(data[20 + size :])
        return sealed(header, body)
    return bytes(data)


damaged = st.builds(
    _damaged,
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 7)), max_size=4),
    st.sampled_from([0, 0, 0, 1, 5, 100]),
    st.sampled_from([b"", b"", b"\0", b"\xc0" * 64]),
    st.booleans(),
)
versions = st.builds(
    lambda version, flag, magic: sealed(
        packed(["tree", {}, [], b"\xc0"]), b"", flag, version, magic
    ),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 255]),
    st.sampled_from([b"AL", b"al", b"\0\0"]),
)
any_meta = st.dictionaries(st.text(max_size=6), values, max_size=4) | odd
frames = st.one_of(
    st.binary(max_size=200),
    damaged,
    versions,
    frames_of(st.sampled_from(KINDS) | odd, any_meta),
    st.builds(lambda header: sealed(packed(header)), values),
    st.builds(sealed, bombs),
)


CALLER = b"evil" * 4
"""Who a hostile request says that it is of."""
stamps = st.one_of(
    st.builds(
        lambda number, deadline: struct.pack("<Qd16s", number, deadline, CALLER),
        st.sampled_from([0, 1, 2**64 - 1]) | st.integers(0, 5),
        st.sampled_from([0.0, -1.0, 1e18, math.nan, math.inf, -math.inf]),
    ),
    st.binary(max_size=40),
    st.sampled_from([b"", bytes(8), bytes(400)]),
)
numbered = st.builds(
    lambda what, where: [msgpack.ExtType(int(Mark.NUMBER), b""), what, where],
    st.sampled_from(["q", "d", "?", "<f4", "<i8", "bfloat16", "|V8", "O", "e", "32s"]) | odd,
    st.sampled_from([0, 8, 16, 32, 33, 40, 2**31, 2**63, -1]) | odd,
)


def _stamped(kind, meta, stamp, tree, leaves, body):
    """Return a frame whose first leaf is a stamp, whatever its tree is."""
    inner = b"\x92" + packed(leaf(0)) + (tree if type(tree) is bytes else packed(tree))
    described = [["|u1", [len(stamp)]], *(leaves if type(leaves) is list else [])]
    header = packed([kind, meta, described, inner])
    padding = bytes(-(PREFIX_BYTES + len(header)) % 64)
    return sealed(header, padding + stamp + bytes(-len(stamp) % 64) + body)


stamped_trees = contents | numbered | st.lists(numbered | odd | references, max_size=4)


def stamped(kind, metas):
    """Return a strategy for stamped frames with these metas."""
    return st.builds(
        _stamped, st.just(kind), metas, stamps, stamped_trees, st.just([]) | leaf_lists, bodies
    )


_request_fields = {
    "what": st.sampled_from(["act", "obs", "request", "call", "interfaces"]) | values,
    "name": st.sampled_from(["move", "stats", "policy", "x" * 3000]) | values,
    "run": st.just("") | values,
    "repeats": st.none() | st.text(max_size=3) | values,
}
requests = st.one_of(
    frames,
    frames_of(st.just("request"), st.fixed_dictionaries(_request_fields)),
    stamped("request", st.fixed_dictionaries(_request_fields)),
    stamped("request", st.fixed_dictionaries({}, optional=_request_fields)),
)


chunk_metas = st.fixed_dictionaries(
    {
        "n": st.integers(0, 5) | st.sampled_from([2**14, 2**20]) | numbers | odd,
        "kinds": st.sampled_from([None, "", "a", "aa", "s", "p", "x"]) | odd,
        "meta": st.just({}) | any_meta,
    }
)
chunks = frames | frames_of(st.just("chunk"), chunk_metas) | st.sampled_from(VALID)
firsts = st.sampled_from([b"1", b"0", b"-1", b"9" * 5000, b"", b"x", b"1.5", b"\xff", b" 1 "])
firsts |= st.integers(-5, 50).map(lambda n: str(n).encode())
entries = st.one_of(
    st.tuples(st.just(b"first"), firsts, st.just(b"chunk"), chunks),
    st.tuples(st.just(b"chunk"), chunks, st.just(b"first"), firsts),
    st.tuples(st.just(b"first"), firsts),
    st.tuples(st.just(b"chunk"), chunks),
    st.tuples(st.just(b"first"), firsts, st.just(b"mark"), frames),
    st.tuples(st.just(b"first"), firsts, st.just(b"first"), firsts, st.just(b"chunk"), chunks),
    st.lists(st.binary(max_size=20), min_size=2, max_size=6).filter(lambda f: len(f) % 2 == 0),
).map(tuple)
names = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"\xff\xfe", b"a\nb", b"x" * 3000, "ümläut".encode(), b"\0", b"}:stream:y", b"*"]
)

PRESENCE = {"role": "server", "name": "x", "host": "h", "pid": 1, "token": "t", "config": {}}
PRESENCE |= {"progress_ms": 1, "machine": "m", "started": "1", "stores": {"arm": {}}, "began_ms": 0}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
presence = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda name, value: json.dumps(PRESENCE | {name: value}).encode(),
        st.sampled_from(sorted(PRESENCE)),
        json_values,
    ),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"[" * 50_000, b'{"a":' * 50_000, b'{"pid": ' + b"9" * 5000 + b"}", b"{}", b""]
    ),
    st.sampled_from([b'{"pid": -1}', b'{"pid": 1e400}', b'{"progress_ms": NaN}', b'{"role": 1}']),
)

manifest_metas = st.fixed_dictionaries(
    {
        "version": st.tuples(st.integers(0, 3), st.integers(0, 3)).map(list) | values,
        "ms": st.floats(0, 9) | numbers | odd,
        "nbytes": st.sampled_from([0, 21, 100, 2**20, 2**29, 2**40, -1]) | numbers | odd,
    }
)
_HEADS = [np.frombuffer(frame[:200], np.uint8) for frame in VALID[:2]]
manifest_trees = st.builds(
    lambda head, leaves: (head, leaves),
    st.sampled_from([*_HEADS, np.zeros(3), np.zeros((0,), np.uint8), None, "x"]),
    st.none()
    | st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=3)
    | st.lists(st.text(max_size=3), max_size=3)
    | odd.filter(lambda v: not isinstance(v, msgpack.ExtType)),
)


def _manifest(meta, tree):
    head, leaves = tree
    try:
        return bytes(encode({"head": head, "leaves": leaves}, "weights", meta))
    except Exception:
        return bytes(encode({"head": head, "leaves": None}, "weights", {}))


manifests = st.builds(_manifest, manifest_metas, manifest_trees) | frames_of(
    st.just("weights"), manifest_metas
)
manifests |= frames
observation_metas = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["s", "t"]) | values,
        "number": st.integers(0, 50) | numbers | odd,
    },
)
observations = frames | frames_of(st.just("obs"), observation_metas)
_reply_fields = {
    "status": st.sampled_from(["ok", "unknown", "error"]) | values,
    "message": values,
    "type": values,
}
replies = st.one_of(
    frames,
    frames_of(st.just("reply"), st.fixed_dictionaries({}, optional=_reply_fields)),
    stamped("reply", st.fixed_dictionaries({}, optional=_reply_fields)),
)
