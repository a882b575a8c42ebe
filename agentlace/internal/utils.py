"""Image, compression and printing helpers that existing programs import."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from agentlace import codec
from agentlace.codec.images import load_cv2
from agentlace.errors import MissingExtra

Array = np.ndarray[Any, Any]


def mat_to_jpeg(img: Array) -> bytes:
    """Return an image as JPEG.

    Args:
        img: uint8 array (height, width, 3), channels in OpenCV's order: blue, green, red.

    Raises:
        ValueError: not an image.
    """
    done, data = load_cv2().imencode(".jpg", img)
    if not done:
        raise ValueError(f"cannot encode an array of shape {img.shape} as JPEG")
    encoded: bytes = data.tobytes()
    return encoded


def jpeg_to_mat(buf: bytes) -> Array:
    """Return a JPEG as uint8 array (height, width, 3), channels blue, green, red.

    Raises:
        ValueError: not a JPEG.
    """
    cv2 = load_cv2()
    image = cv2.imdecode(np.frombuffer(buf, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{len(buf)} bytes that are not a JPEG")
    decoded: Array = image
    return decoded


def compute_hash(obj: Any) -> str:
    """Return a hexadecimal digest of a value that the codec takes."""
    return hashlib.md5(bytes(codec.encode(obj)), usedforsecurity=False).hexdigest()


def make_compression_method(
    compression: str,
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return ``compress(value) -> bytes`` and ``decompress(bytes) -> value``.

    Args:
        compression: ``lz4`` (faster) or ``zlib`` (smaller).

    Raises:
        ValueError: another name.
        MissingExtra: lz4 is not installed.
    """
    if compression == "lz4":
        try:
            import lz4.frame as method
        except ImportError as error:
            raise MissingExtra("lz4", "compress") from error
    elif compression == "zlib":
        method = zlib
    else:
        raise ValueError(f"unknown compression {compression!r}: use 'lz4' or 'zlib'")

    def compress(value: Any) -> bytes:
        packed: bytes = method.compress(bytes(codec.encode(value)))
        return packed

    def decompress(data: bytes) -> Any:
        return codec.decode(method.decompress(data)).tree

    return compress, decompress


def print_warning(text: str) -> None:
    """Print in yellow."""
    print(f"\033[93m{text}\033[00m")


def print_error(text: str) -> None:
    """Print in red."""
    print(f"\033[91m{text}\033[00m")
