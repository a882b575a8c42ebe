"""Frames ⇄ PNG or JPEG with OpenCV, which lets other threads run meanwhile."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from agentlace.codec.images import load_cv2

Array = np.ndarray[Any, Any]
ImageFormat = Literal["png", "jpeg"]

CHANNELS = (1, 3, 4)
LEAST_SIDE = 8
"""Pixels; arrays that are smaller are no images, whatever their shape."""
JPEG_QUALITY = 95


def is_image(shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether arrays of this shape and dtype are one image each.

    They are if they are uint8 or uint16 of shape (height, width, 1 | 3 | 4), with any number of
    dimensions of 1 before.
    """
    if len(shape) < 3 or np.dtype(dtype) not in (np.uint8, np.uint16):
        return False
    *before, height, width, channels = shape
    is_one = all(n == 1 for n in before)
    return is_one and channels in CHANNELS and min(height, width) >= LEAST_SIDE


def format_of(shape: tuple[int, ...], dtype: Any, wanted: ImageFormat) -> ImageFormat:
    """Return the format that can hold such images: JPEG takes no fourth channel and no uint16."""
    return wanted if shape[-1] != 4 and np.dtype(dtype) == np.uint8 else "png"


def encode_image(image: Array, format: ImageFormat) -> bytes:
    """Return an image as PNG or JPEG.

    Args:
        image: shape (height, width, channels): gray, RGB or RGBA.
        format: PNG is lossless; JPEG has quality 95.
    """
    cv2 = load_cv2("rlds")
    flags = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if format == "jpeg" else []
    done, data = cv2.imencode(f".{format}", _swapped(cv2, image), flags)
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape}")
    encoded: bytes = data.tobytes()
    return encoded


def _swapped(cv2: Any, image: Array) -> Array:
    """Return an image with channels in OpenCV's order."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    code = codes.get(image.shape[-1])
    return image if code is None else np.asarray(cv2.cvtColor(image, code))
