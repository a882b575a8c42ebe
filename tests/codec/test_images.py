"""Images as PNG and JPEG, their sizes, and dicts that decode them when they are looked at."""

import copy
import struct
import zlib

import msgpack
import numpy as np
import pytest

from agentlace import codec
from agentlace.codec.images import (
    MARK,
    MAX_PIXELS,
    Resize,
    decode_image,
    encode_image,
    encoded_of,
    resized,
)
from agentlace.codec.lazy import LazyDict, Pending, pending_at
from agentlace.errors import DecodeError, EncodeError

RED, GREEN, BLUE = (250, 10, 20), (20, 240, 30), (10, 30, 230)


def flag(height=96, width=160):
    """An RGB image of three stripes."""
    image = np.empty((height, width, 3), np.uint8)
    third = width // 3
    image[:, :third], image[:, third : 2 * third], image[:, 2 * third :] = RED, GREEN, BLUE
    return image


def travelled(value):
    """Return a value as it comes out at the other end."""
    return codec.decode(bytes(codec.encode({"at": value}))).tree["at"]


def through(image, *args):
    return decode_image(encoded_of(travelled(encode_image(image, *args))))


RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize(
    "shape",
    [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (1, 9, 6, 3), (1, 1, 4, 8), (1, 1), (1, 1, 3)],
)
def test_png_gives_back_every_bit(shape, dtype):
    image = RNG.integers(0, 255, shape).astype(dtype)
    image[image > 100] *= 1 if image.dtype == np.uint8 else 250
    found = through(image, "png")
    assert found.dtype == image.dtype.newbyteorder("=") and found.shape == image.shape
    np.testing.assert_array_equal(found, image)


def test_an_image_need_not_be_contiguous():
    image = flag()[::2, ::-1]
    np.testing.assert_array_equal(through(image, "png"), image)


@pytest.mark.parametrize("shape", [(96, 160, 3), (1, 96, 160, 3)])
def test_jpeg_keeps_red_red(shape):
    image = flag().reshape(shape)
    found = through(image, "jpeg", 95)
    assert (found.dtype, found.shape) == (np.uint8, shape)
    middles = found.reshape(96, 160, 3)[48, [26, 80, 133]].astype(int)
    assert np.abs(middles - [RED, GREEN, BLUE]).max() <= 4


@pytest.mark.parametrize("shape", [(96, 160), (96, 160, 1)])
def test_jpeg_of_gray(shape):
    image = flag()[..., 1].reshape(shape)
    found = through(image, "jpeg", 95)
    assert found.shape == shape
    assert np.abs(found.astype(int) - image)[:, 5:40].max() <= 3


def test_a_lower_quality_takes_fewer_bytes():
    image = RNG.integers(0, 255, (64, 64, 3), np.uint8)
    sizes = [encode_image(image, "jpeg", quality)[-1].nbytes for quality in (20, 60, 95)]
    assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[2]


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (np.zeros((4, 4, 3), np.float32), "png"),
        (np.zeros((4, 4, 3), np.uint16), "jpeg"),
        (np.zeros((4, 4, 4), np.uint8), "jpeg"),
        (np.zeros((3, 64, 64), np.uint8), "png"),
        (np.zeros((2, 64, 64, 3), np.uint8), "png"),
        (np.zeros(12, np.uint8), "png"),
        (np.zeros((), np.uint8), "png"),
        (np.zeros((0, 4, 3), np.uint8), "png"),
        (np.zeros((1, 70_000), np.uint8), "jpeg"),
        (b"bytes", "png"),
        ({"a": 1}, "png"),
    ],
    ids=lambda value: str(getattr(value, "shape", type(value).__name__)),
)
def test_what_is_no_image_is_refused(image, format):
    with pytest.raises(ValueError, match=f"{format} takes"):
        encode_image(image, format)


# -- hostile ---------------------------------------------------------------------------------------


def replaced(**changes):
    names = ("mark", "format", "dtype", "shape", "data")
    fields = dict(zip(names, encode_image(flag(), "png"), strict=True))
    return tuple((fields | changes).values())


def test_a_tuple_of_somebody_elses_is_no_image():
    assert encoded_of(("a", 1, 2, 3, 4)) is None
    assert encoded_of((MARK, "png")) is None
    assert encoded_of(flag()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "gif"},
        {"format": []},
        {"dtype": "float64"},
        {"dtype": 3},
        {"shape": [96, 160, 3]},
        {"shape": (96, -160, 3)},
        {"shape": (96, "160", 3)},
        {"shape": (1 << 20, 1 << 20)},
        {"data": b"bytes"},
        {"data": np.zeros((2, 2), np.uint8)},
        {"data": np.zeros(9)},
    ],
    ids=str,
)
def test_a_claim_that_cannot_be_is_found_at_once(changes):
    with pytest.raises(DecodeError):
        encoded_of(replaced(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (96, 161, 3)},
        {"shape": (96, 160)},
        {"shape": ()},
        {"dtype": "uint16"},
        {"data": np.zeros(0, np.uint8)},
        {"data": np.zeros(1000, np.uint8)},
        {"data": np.frombuffer(b"\xff\xd8\xff\xe0\x00\x00" * 100, np.uint8)},
        {"data": replaced()[-1][:60]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_bytes_of_another_image_or_none(changes):
    with pytest.raises(DecodeError):
        decode_image(encoded_of(replaced(**changes)))


def test_a_few_bytes_cannot_ask_for_much_memory():
    side = 60_000

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert side * side > MAX_PIXELS
    data = np.frombuffer(bomb, np.uint8)
    for shape in ((96, 160, 3), (side, side)):
        with pytest.raises(DecodeError):
            decode_image(encoded_of(replaced(shape=shape, data=data)))


@pytest.mark.parametrize("seed", range(200))
def test_damaged_bytes_raise_or_give_an_image(seed):
    rng = np.random.default_rng(seed)
    sent = encode_image(flag(), *(("png", None), ("jpeg", 90))[seed % 2])
    data = sent[-1].copy()
    data[rng.integers(0, min(len(data), 300), 4)] = rng.integers(0, 256, 4)
    try:
        image = decode_image(encoded_of((*sent[:-1], data)))
    except DecodeError:
        return
    assert (image.dtype, image.shape) == (np.uint8, flag().shape)


# -- sizes -----------------------------------------------------------------------------------------


def test_shrinking_averages():
    image = np.array([[0, 100], [100, 200]], np.uint8).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(resized(image, Resize(2, 2)), [[0, 100], [100, 200]])
    assert resized(image, Resize(1, 1)).tolist() == [[100]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (5, 30, 40, 3)])
@pytest.mark.parametrize("pad", [False, True])
def test_shapes_and_dtypes_stay(shape, dtype, pad):
    image = np.full(shape, 7, dtype)
    found = resized(image, Resize(16, 16, pad))
    split = len(shape) - (3 if shape[-1] in (1, 3) else 2)
    assert found.shape == (*shape[:split], 16, 16, *shape[split + 2 :])
    assert found.dtype == dtype and found.max() == pytest.approx(7)


def test_padding_keeps_the_aspect_and_centres():
    found = resized(np.full((100, 200, 3), 9, np.uint8), Resize(40, 40, pad=True))
    assert (found[10:30] == 9).all()
    assert not found[:10].any() and not found[30:].any()
    tall = resized(np.full((200, 100), 9, np.uint8), Resize(40, 40, pad=True))
    assert (tall[:, 10:30] == 9).all() and not tall[:, :10].any()


def test_without_padding_the_image_fills_the_size():
    assert (resized(np.full((100, 200), 9, np.uint8), Resize(40, 40)) == 9).all()


def test_enlarging_is_linear():
    found = resized(np.array([[0, 200]], np.uint8), Resize(1, 4))[0]
    assert found[0] == 0 and found[-1] == 200 and (np.diff(found.astype(int)) > 0).all()


@pytest.mark.parametrize("value", [np.zeros(3), 5, np.zeros((0, 4)), np.zeros((4, 4), complex)])
def test_what_cannot_be_resized(value):
    with pytest.raises(ValueError):
        resized(value, Resize(2, 2))


# -- lazy dicts ------------------------------------------------------------------------------------


class Made:
    """Pending values that say how often they were made."""

    def __init__(self):
        self.made = []

    def __call__(self, value):
        return Pending(lambda: self.made.append(value) or np.array(value), f"one of {value}")

    def dict(self):
        return LazyDict(a=self(1), b=self(2), c="plain")


@pytest.fixture
def make():
    return Made()


def test_a_value_is_made_when_it_is_looked_at_and_once(make):
    lazy = make.dict()
    assert (
        isinstance(lazy, dict) and len(lazy) == 3 and "a" in lazy and list(lazy) == ["a", "b", "c"]
    )
    assert repr(lazy) == "{'a': <one of 1>, 'b': <one of 2>, 'c': 'plain'}"
    assert make.made == []
    assert lazy["a"] is lazy["a"] and type(lazy["a"]) is np.ndarray
    assert make.made == [1]
    assert lazy.get("b") == 2 and lazy.get("x") is None and lazy.get("x", 5) == 5
    assert make.made == [1, 2]
    with pytest.raises(KeyError):
        lazy["x"]


@pytest.mark.parametrize(
    "read",
    [
        dict,
        lambda d: {**d},
        lambda d: dict(d.items()),
        lambda d: dict(zip(d.keys(), d.values(), strict=True)),
        lambda d: d.copy(),
        copy.copy,
        copy.deepcopy,
        lambda d: d | {},
        lambda d: {} | d,
        lambda d: {k: d.setdefault(k, None) for k in "abc"},
        lambda d: {k: d.pop(k) for k in "abc"},
        lambda d: dict([d.popitem() for _ in range(3)][::-1]),
        lambda d: codec.decode(bytes(codec.encode(d))).tree,
        lambda d: {**{}, **dict(**d)},
    ],
    ids=range(14),
)
def test_every_way_of_reading_gives_the_values(make, read):
    found = read(make.dict())
    assert type(found) is dict and list(found) == ["a", "b", "c"]
    assert found == {"a": 1, "b": 2, "c": "plain"}
    assert all(type(found[key]) is np.ndarray for key in "ab")


def test_comparing_and_changing(make):
    lazy = make.dict()
    assert lazy == {"a": 1, "b": 2, "c": "plain"} and lazy != {"a": 1}
    lazy["a"] = 5
    lazy.update(d=6)
    del lazy["b"]
    assert lazy == {"a": 5, "c": "plain", "d": 6}


def test_jax_takes_it_for_a_dict(make):
    jax = pytest.importorskip("jax")
    lazy = {"images": make.dict() | {"c": 3.0}, "lazy": LazyDict(a=make(4))}
    found = jax.tree_util.tree_map(lambda x: x + 1, lazy)
    assert found == {"images": {"a": 2, "b": 3, "c": 4}, "lazy": {"a": 5}}
    leaves = jax.tree_util.tree_leaves(LazyDict(b=make(2), a=make(1)))
    assert [int(leaf) for leaf in leaves] == [1, 2]  # in the order that a dict has there


def test_msgpack_itself_refuses_rather_than_sending_what_is_pending(make):
    with pytest.raises(TypeError):
        msgpack.packb({"at": LazyDict(a=Pending(lambda: 1, ""))}, strict_types=True)
    with pytest.raises(EncodeError, match="a"):
        codec.encode(LazyDict(a=Pending(object, "")))


def test_places_in_nested_dicts(make):
    tree = {"cameras": {"wrist": 1, "side": 2}, "pose": 3}
    found, is_there = pending_at(tree, "cameras/wrist", make)
    assert is_there and type(found) is dict and type(found["cameras"]) is LazyDict
    found, is_there = pending_at(found, "cameras/side", make)
    assert is_there and make.made == []
    assert found == {"cameras": {"wrist": 1, "side": 2}, "pose": 3}
    assert make.made == [1, 2]
    assert type(tree["cameras"]) is dict  # the given one stays as it is
    for place in ("no", "cameras/no", "pose/no", "cameras/wrist/no", ""):
        assert pending_at(tree, place, make) == (tree, False)
    assert pending_at([1], "0", make) == ([1], False)
