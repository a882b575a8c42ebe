"""A mark between transitions ⇄ one frame: where an episode begins, ends, or is discarded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentlace.codec.frame import Frame, decode, encode
from agentlace.errors import DecodeError, EncodeError

KIND = "mark"
BEGIN, END, DISCARD = "begin", "end", "discard"
TERMINATED, TRUNCATED, ABORTED = "terminated", "truncated", "aborted"
WHATS = (BEGIN, END, DISCARD)
HOWS = (TERMINATED, TRUNCATED, ABORTED)
"""The environment ended the episode; a limit ended it; it was broken off."""
MAX_BYTES = 1 << 20
"""A mark is small: what an episode has beside its transitions is no place for recordings."""


@dataclass(frozen=True)
class Mark:
    """What an actor says of its running episode, between two transitions of one store.

    Attributes:
        what: one of WHATS.
        how: of an end, one of HOWS; else None.
        episode: the how manieth episode of this actor and store it is, from 1.
        at_s: the actor's wall clock, in seconds since the epoch.
        metadata: of the episode; whatever may travel, by name.
    """

    what: str
    how: str | None = None
    episode: int = 0
    at_s: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def encode_mark(mark: Mark) -> Frame:
    """Encode a mark.

    Raises:
        EncodeError: its metadata is not a mapping with names, too large, or may not travel.
    """
    metadata = dict(mark.metadata)
    for name in metadata:
        if type(name) is not str:
            raise EncodeError("metadata", f"{name!r} is not a name")
    tree = {"metadata": metadata}
    meta = {"what": mark.what, "how": mark.how, "episode": mark.episode, "at_s": mark.at_s}
    frame = encode(tree, KIND, meta)
    if frame.nbytes > MAX_BYTES:
        raise EncodeError("metadata", f"{frame.nbytes} bytes are more than a mark's {MAX_BYTES}")
    return Frame([frame.copy()], frame.nbytes)  # the metadata's arrays may change from now on


def decode_mark(data: bytes | bytearray | memoryview) -> Mark:
    """Decode what :func:`encode_mark` made.

    Raises:
        DecodeError: not a whole, valid mark.
    """
    _, meta, tree = decode(data, KIND)
    what, how, episode, at_s = (meta.get(key) for key in ("what", "how", "episode", "at_s"))
    if what not in WHATS or (how not in HOWS if what == END else how is not None):
        raise DecodeError(f"a mark of unknown kind: {what!r}, {how!r}")
    if type(episode) is not int or type(at_s) is not float:
        raise DecodeError("a mark without the episode's number and a time")
    metadata = tree.get("metadata") if type(tree) is dict else None
    if type(metadata) is not dict or any(type(name) is not str for name in metadata):
        raise DecodeError("a mark whose metadata has no names")
    return Mark(what, how, episode, at_s, metadata)
