"""Images ⇄ PNG or JPEG with OpenCV, which lets other threads run meanwhile; and their resizing.

An encoded image travels as a tuple: (:data:`MARK`, format, dtype, shape, bytes as uint8 array).
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np

from agentlace.errors import DecodeError, MissingExtra

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

MARK = "agentlace:image"
PNG, JPEG = "png", "jpeg"
CHANNELS = {PNG: (1, 3, 4), JPEG: (1, 3)}
DTYPES = {PNG: ("uint8", "uint16"), JPEG: ("uint8",)}
MAX_SIDE = 65_500
"""Pixels; JPEG knows no longer side."""
MAX_PIXELS = 64 << 20
"""A few bytes can announce any number: an image of so many takes half a gigabyte at worst."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_SIZED = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that tell the image's size."""


class Resize(NamedTuple):
    """A size in pixels; ``pad`` keeps the aspect and fills up with black."""

    height: int
    width: int
    pad: bool = False


class Encoded(NamedTuple):
    """An image that has not been decoded yet."""

    format: str
    dtype: str
    shape: tuple[int, ...]
    data: Array

    def __str__(self) -> str:
        """Return what it is, such as ``jpeg 480x640x3``."""
        return f"{self.format} {'x'.join(map(str, self.shape))}"


def load_cv2(extra: str = "image") -> Any:
    """Return OpenCV.

    Raises:
        MissingExtra: it is not installed; this extra brings it.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", extra) from error
    return cv2


def encode_image(image: Any, format: str, quality: int | None = None) -> tuple[Any, ...]:
    """Return what stands for an image in a tree.

    Args:
        image: uint8 of shape (height, width), (height, width, 1) or, in RGB, (height, width, 3),
            with any number of dimensions of 1 before. PNG also takes uint16 and RGBA.
        format: ``png``, which is lossless, or ``jpeg``, which is not.
        quality: of JPEG, 1 to 100.

    Raises:
        ValueError: not such an image; the message says what it is.
    """
    cv2 = load_cv2()
    array = np.asarray(image)
    _check_image(array, format)
    _, sides, channels = layout(array.shape)
    native = array.dtype.newbyteorder("=")
    flat = np.ascontiguousarray(array, native).reshape(*sides, *channels)
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if format == JPEG and quality else []
    done, data = cv2.imencode(f".{format}", _swapped(cv2, flat), flags)
    if not done:
        raise ValueError(f"OpenCV cannot write {_told(array)} as {format}")
    return (MARK, format, array.dtype.name, array.shape, data.reshape(-1))


def layout(shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Return an image's leading dimensions, its height and width, and its channels.

    It has a dimension for channels if it has three dimensions or more, the last one of 1, 3 or 4.
    """
    end = len(shape) - (len(shape) > 2 and shape[-1] in (1, 3, 4))
    return shape[: end - 2], shape[end - 2 : end], shape[end:]


def _check_image(array: Array, format: str) -> None:
    dtypes, allowed = DTYPES[format], CHANNELS[format]
    leading, sides, channels = layout(array.shape)
    is_image = len(sides) == 2 and 0 not in sides and math.prod(leading) == 1
    if array.dtype.name not in dtypes or not is_image or math.prod(channels) not in allowed:
        raise ValueError(
            f"{format} takes {' or '.join(dtypes)} of shape (height, width) or (height, width, "
            f"{' | '.join(map(str, allowed))}), not {_told(array)}; choose 'raw' for it"
        )
    if max(sides) > MAX_SIDE or math.prod(sides) > MAX_PIXELS:
        raise ValueError(f"{format} takes {MAX_SIDE} pixels a side and {MAX_PIXELS} in all at most")


def _told(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _swapped(cv2: Any, image: Array) -> Array:
    """Return an image with RGB in OpenCV's order, or the other way round; it is the same."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    code = codes.get(image.shape[2]) if image.ndim == 3 else None
    return image if code is None else np.asarray(cv2.cvtColor(image, code))


def encoded_of(value: Any) -> Encoded | None:
    """Return the encoded image that a decoded tree has here; None if it has something else.

    Raises:
        DecodeError: it claims to be one and cannot be.
    """
    if type(value) is not tuple or len(value) != 5 or value[0] != MARK:
        return None
    _, format, dtype, shape, data = value
    if type(format) is not str or format not in CHANNELS or dtype not in DTYPES[format]:
        raise DecodeError(f"an image of format {format!r:.50} and dtype {dtype!r:.50}")
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise DecodeError("an image without a valid shape")
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 1:
        raise DecodeError("an image whose bytes are no bytes")
    if math.prod(shape) > MAX_PIXELS * 4:
        raise DecodeError(f"an image of shape {shape}")
    return Encoded(format, dtype, shape, data)


def decode_image(image: Encoded) -> Array:
    """Return an image of the shape and dtype that it had, channels in RGB.

    Raises:
        DecodeError: its bytes are not such an image.
        MissingExtra: OpenCV is not installed.
    """
    cv2 = load_cv2()
    sides = _sides_of(image.data.data)
    if sides != layout(image.shape)[1] or math.prod(sides) > MAX_PIXELS:  # before room is made
        raise DecodeError(f"an image of {sides[0]}x{sides[1]} pixels instead of {image}")
    try:
        decoded = cv2.imdecode(image.data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError(f"a damaged image ({image}): {error}") from error
    if decoded is None or decoded.dtype.name != image.dtype:
        raise DecodeError(f"a damaged image ({image})")
    try:
        return _swapped(cv2, decoded).reshape(image.shape)
    except ValueError as error:
        raise DecodeError(f"a damaged image ({image}): it has shape {decoded.shape}") from error


def _sides_of(data: memoryview) -> Shape:
    """Return an image's height and width as its head tells; raises DecodeError."""
    if bytes(data[:8]) == _PNG_START and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    at = 2 if bytes(data[:3]) == b"\xff\xd8\xff" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _SIZED:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise DecodeError("an image that is neither PNG nor JPEG")


def resized(image: Any, to: Resize) -> Array:
    """Return an image, or several along leading dimensions, in another size.

    Shrinking averages over the pixels' areas (``cv2.INTER_AREA``), enlarging is linear. With
    ``pad`` the image keeps its aspect, is centred, and black fills the rest.

    Args:
        image: array (…, height, width) or (…, height, width, 1 | 3 | 4), of a dtype that OpenCV
            resizes: uint8, uint16, int16, float32, float64.
        to: the new size.

    Raises:
        ValueError: not such an array.
        MissingExtra: OpenCV is not installed.
    """
    array = np.asarray(image)
    leading, sides, channels = layout(array.shape)
    if len(sides) < 2 or 0 in array.shape:
        raise ValueError(f"no image: {_told(array)}")
    if sides == (to.height, to.width):
        return array
    images = array.reshape(-1, *sides, *channels)
    done = [_one_resized(one, to) for one in images]
    return np.stack(done).reshape(*leading, to.height, to.width, *channels)


def _one_resized(image: Array, to: Resize) -> Array:
    cv2 = load_cv2()
    height, width = image.shape[:2]
    size = (to.height, to.width)
    if to.pad:
        scale = min(to.height / height, to.width / width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrinks = size[0] * size[1] < height * width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    try:
        small = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=method)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot resize {_told(image)}") from error
    if size == (to.height, to.width):
        return np.asarray(small).reshape(*size, *image.shape[2:])
    whole = np.zeros((to.height, to.width, *image.shape[2:]), image.dtype)
    top, left = (to.height - size[0]) // 2, (to.width - size[1]) // 2
    whole[top : top + size[0], left : left + size[1]] = small.reshape(*size, *image.shape[2:])
    return whole
