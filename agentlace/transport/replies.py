"""Replies to requests of one structure, and what they say beside their tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from agentlace.codec import Frame, StampedEncoder

REPLY = "reply"
REPLY_STAMP = "Q"
"""The number of the request."""


class Answer(NamedTuple):
    """What a handler may return in place of a tree, to say more than the tree.

    Attributes:
        tree: the reply's.
        about: plain values for the reply's meta, such as which policy made it. It should be one
            object for many replies: they have it packed once.
    """

    tree: Any
    about: Mapping[str, Any]


class ReplyEncoder:
    """Encodes what handlers return. Not thread-safe."""

    def __init__(self) -> None:
        self._about: Mapping[str, Any] = {}
        self._encoder = StampedEncoder(REPLY, {"status": "ok"}, REPLY_STAMP)

    def encode(self, stamp: tuple[int], result: Any) -> Frame:
        """Encode a tree or an Answer.

        Raises:
            EncodeError: a value that may not travel, with its path.
        """
        about: Mapping[str, Any] = {}
        if type(result) is Answer:
            result, about = result
        if about is not self._about and about != self._about:
            self._encoder = StampedEncoder(REPLY, {"status": "ok", **about}, REPLY_STAMP)
            self._about = about
        return self._encoder.encode(stamp, result)
