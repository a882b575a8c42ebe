"""The newest camera frames of an observation broadcast, as JPEG.

Nothing is read or encoded unless somebody looks: a request reads the newest observation, at most
five times a second however many look.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentlace.codec.images import JPEG, Encoded, decode_image, encoded_of, layout, load_cv2
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.transport.broadcast import read_newest
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys

EVERY_S = 0.2
FRAMES_MAX = 8
"""Of one observation so many frames are shown."""
SIDE_MAX = 640
"""Larger frames are shown smaller."""
SERVICES_MAX = 16
QUALITY = 80
DEPTH_MAX = 6
TIMEOUT_S = 2.0
_SERVICE = re.compile(r"action:(\d{1,7})")

Image = np.ndarray[Any, Any]
Found = Image | Encoded


@dataclass
class Shot:
    """The frames of one observation.

    Attributes:
        number: of the observation, and who published it.
        names: of its frames: where they are in the tree.
        jpegs: each encoded, in the same order.
        shapes: each frame's own, in pixels: height, width.
    """

    number: str = ""
    names: list[str] = field(default_factory=list)
    jpegs: list[bytes] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)


class Cameras:
    """Reads and encodes frames. Thread-safe; calls block for a round trip to the broker.

    Args:
        url: the broker.
        every_s: a shot that is younger is returned again.
    """

    def __init__(self, url: BrokerURL, every_s: float = EVERY_S) -> None:
        self._broker = Broker(url)
        self._channel = self._broker.channel(TIMEOUT_S)
        self._every_s = every_s
        self._lock = threading.Lock()
        self._shots: dict[str, tuple[float, Shot]] = {}

    def newest(self, service: str) -> Shot:
        """Return the newest shot of an action service, such as ``action:5556``; maybe empty.

        Raises:
            ValueError: not such a service.
            MissingExtra: OpenCV is not installed.
            BrokerUnreachable, BrokerAuthFailed, DecodeError: as it says.
        """
        found = _SERVICE.fullmatch(service)
        if found is None:
            raise ValueError(f"no action service {service[:50]!r}")
        with self._lock:
            at, shot = self._shots.pop(service, (0.0, Shot()))
            if time.monotonic() - at >= self._every_s:
                shot = self._read(int(found[1]), shot)
                at = time.monotonic()
            self._shots[service] = (at, shot)
            while len(self._shots) > SERVICES_MAX:
                del self._shots[next(iter(self._shots))]
            return shot

    def _read(self, port: int, last: Shot) -> Shot:
        keys = ServiceKeys(self._broker.url.namespace, "action", port)
        message = read_newest(self._channel, keys)
        if message is None:
            return Shot()
        number = f"{message.meta.get('source', '')}-{message.meta.get('number', '')}"
        number = re.sub(r"[^\w-]", "", number)
        if number == last.number:
            return last
        shot = Shot(number)
        for name, image in list(images(message.tree))[:FRAMES_MAX]:
            shot.names.append(name)
            height, width = layout(image.shape)[1]
            shot.shapes.append((height, width))
            shot.jpegs.append(encoded(image))
        return shot

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def images(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Found]]:
    """Yield the camera frames in a tree and where they are: uint8, height by width by 3 or 1.

    Of stacked frames the last one is shown. Those that travelled encoded are not decoded yet.

    Raises:
        DecodeError: what claims to be an encoded image cannot be one.
    """
    if depth > DEPTH_MAX:
        return
    if isinstance(tree, dict):
        for key in tree:
            yield from images(tree[key], f"{path}/{key}".lstrip("/"), depth + 1)
    elif (image := encoded_of(tree)) is not None:
        if image.dtype == "uint8":
            yield path or "observation", image
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from images(value, f"{path}/{number}".lstrip("/"), depth + 1)
    elif isinstance(tree, np.ndarray) and tree.dtype == np.uint8 and tree.ndim >= 3:
        if tree.shape[-1] in (1, 3) and min(tree.shape) > 0 and min(tree.shape[-3:-1]) > 3:
            yield path or "observation", tree.reshape(-1, *tree.shape[-3:])[-1]


def encoded(image: Found) -> bytes:
    """Return an RGB or grey frame as JPEG, no larger than SIDE_MAX; one that is so as it is.

    Raises:
        MissingExtra: OpenCV is not installed.
        DecodeError: it travelled encoded, and is damaged.
    """
    if isinstance(image, Encoded):
        _, sides, channels = layout(image.shape)
        if image.format == JPEG and max(sides) <= SIDE_MAX:
            return image.data.tobytes()
        frame: Image = decode_image(image).reshape(*sides, *channels)
        frame = frame[..., :3] if channels else frame
    else:
        frame = image
    cv2 = load_cv2()
    scale = SIDE_MAX / max(frame.shape[:2])
    if scale < 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if frame.ndim == 3 and frame.shape[-1] == 3:
        frame = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
    with contextlib.suppress(cv2.error):
        is_done, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if is_done:
            return bytes(jpeg)
    raise AgentlaceError(f"a frame of shape {frame.shape} cannot be shown")
