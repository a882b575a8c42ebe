"""Images of observations: encoded at the server, decoded and resized at the client when needed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from agentlace.codec.images import (
    Encoded,
    Resize,
    decode_image,
    encode_image,
    encoded_of,
    load_cv2,
    resized,
)
from agentlace.codec.lazy import Pending, pending_at
from agentlace.config import checked_codecs
from agentlace.errors import AgentlaceError, EncodeError, UnknownRequest
from agentlace.image_codecs import parsed
from agentlace.telemetry import Sample

log = logging.getLogger(__name__)

Sizes = Mapping[str, Resize | tuple[int, int]]
"""By the place of an image, ``(height, width)`` in pixels, or a :class:`Resize`."""


class ImageTimes(NamedTuple):
    """What the images at one place have cost so far, at this end.

    Attributes:
        images: those that were encoded (at a server), or decoded or resized (at a client).
        seconds: how long that took, all of them together.
        raw_bytes: their size as arrays.
        sent_bytes: their size as they travelled.
    """

    images: int = 0
    seconds: float = 0.0
    raw_bytes: int = 0
    sent_bytes: int = 0


class ObservationImages:
    """Does to the images of observations what config and caller say. Thread-safe.

    Args:
        codecs: the config's ``image_codecs``.
        sizes: to resize to, unless a call says otherwise.

    Raises:
        MissingExtra: there is something to do, and OpenCV is not installed.
    """

    def __init__(self, codecs: Mapping[str, str], sizes: Sizes | None = None) -> None:
        self._codecs = {place: parsed(codec) for place, codec in checked_codecs(codecs).items()}
        self._sizes = checked_sizes(sizes)
        self._lock = threading.Lock()
        self._times: dict[str, ImageTimes] = {}
        if self._codecs or self._sizes:
            load_cv2()

    def encoded(self, tree: Any) -> Any:
        """Return an observation whose images are encoded; the given one stays as it is.

        Raises:
            EncodeError: what is at a place is no image that its codec takes.
        """
        for place, (format, quality) in self._codecs.items():
            tree = _replaced(tree, place, partial(self._sent, place, format, quality))
        return tree

    def _sent(self, place: str, format: str, quality: int | None, value: Any) -> Any:
        if value is None:
            return None
        start_s = time.monotonic()
        try:
            sent = encode_image(value, format, quality)
        except (TypeError, ValueError) as error:
            raise EncodeError(place, str(error)) from None
        self._count(place, time.monotonic() - start_s, np.asarray(value).nbytes, sent[-1].nbytes)
        return sent

    def opened(self, tree: Any, sizes: Sizes | None = None) -> Any:
        """Return an observation whose images are decoded and resized when they are looked at.

        Raises:
            DecodeError: something in it only looks like an encoded image.
            UnknownRequest: it has nothing at a place that the caller wants resized.
        """
        wanted = checked_sizes(sizes)
        places = self._sizes | wanted
        for place in [*self._codecs, *(place for place in places if place not in self._codecs)]:
            make = partial(self._pending, place, places.get(place))
            tree, is_there = pending_at(tree, place, make)
            if place in wanted and not is_there:
                raise UnknownRequest(f"resize: the observation has nothing at {place!r}")
        return tree

    def _pending(self, place: str, size: Resize | None, value: Any) -> Pending | None:
        image = encoded_of(value)
        if image is None and (size is None or value is None):
            return None
        told = str(image) if image else type(value).__name__
        return Pending(lambda: self._seen(place, value if image is None else image, size), told)

    def _seen(self, place: str, image: Any, size: Resize | None) -> Any:
        start_s = time.monotonic()
        array, sent_bytes = image, getattr(image, "nbytes", 0)
        if type(image) is Encoded:
            array, sent_bytes = decode_image(image), image.data.nbytes
        raw_bytes = getattr(array, "nbytes", 0)
        if size is not None:
            try:
                array = resized(array, size)
            except (TypeError, ValueError) as error:
                raise AgentlaceError(f"resize: {place}: {error}") from None
        self._count(place, time.monotonic() - start_s, raw_bytes, sent_bytes)
        return array

    def _count(self, place: str, seconds: float, raw_bytes: int, sent_bytes: int) -> None:
        log.debug("%s: %.2f ms, %d bytes for %d", place, seconds * 1000, sent_bytes, raw_bytes)
        with self._lock:
            was = self._times.get(place, ImageTimes())
            self._times[place] = ImageTimes(
                was.images + 1,
                was.seconds + seconds,
                was.raw_bytes + raw_bytes,
                was.sent_bytes + sent_bytes,
            )

    def samples(self) -> Iterator[Sample]:
        """Yield the numbers of the images at each place."""
        for place, times in self.times.items():
            yield Sample("images_total", times.images, {"place": place})
            yield Sample("image_seconds_total", times.seconds, {"place": place})

    @property
    def times(self) -> dict[str, ImageTimes]:
        """What the images at each place have cost so far."""
        with self._lock:
            return dict(self._times)


def checked_sizes(sizes: Sizes | None) -> dict[str, Resize]:
    """Return sizes by place; raises ValueError for one that is none."""
    found = {place: Resize(*size) for place, size in (sizes or {}).items()}
    for place, size in found.items():
        if not all(type(side) is int and side > 0 for side in size[:2]):
            raise ValueError(f"resize: {place!r}: {tuple(size)} is no (height, width) in pixels")
    return found


def _replaced(tree: Any, place: str, made: Callable[[Any], Any]) -> Any:
    """Return a tree with something else at a place; dicts on the way are copied."""
    key, _, rest = place.partition("/")
    if not isinstance(tree, Mapping) or key not in tree:
        return tree
    value = _replaced(tree[key], rest, made) if rest else made(tree[key])
    return {**tree, key: value}
