"""The inner loops of a small call and of a large batch, compiled.

They are there if there is a compiled module for this Python. Nothing depends on it: whoever uses
one of these has a method that does the same, for when it is None here, and for what the compiled
one leaves to it. With ``AGENTLACE_PURE=1`` in the environment it is not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

VERSION = 2
"""Of what the functions take and return; a module of another one, from before an update, is not
used."""
MAX_PARTS = 64
"""So many buffers can be sent in one trade."""
MAX_LEAVES = 64
"""Rows of so many leaves can be gathered at once."""

frame: Callable[[tuple[Any, ...], tuple[Any, ...], Any], bytes | None] | None = None
"""Takes what is known of a structure, a stamp and a tree; returns the frame, None if it is of
another structure."""
opened: Callable[[dict[bytes, Any], Any], tuple[Any, tuple[Any, ...], Any] | None] | None = None
"""Takes what is known of frames, by their headers, and a frame; returns what it is about, its
stamp and its tree, None if nothing is known of it."""
spin: Callable[[int, int, int], None] | None = None
"""Takes a file descriptor, a number of bytes and one of microseconds; returns as soon as so many
bytes can be read, or so much time has passed."""
trade: Callable[..., int | bytearray] | None = None
"""Takes a file descriptor, what to send before a bulk string, its parts, their bytes, what to send
after it, where to receive into, how many microseconds to spin, and what an envelope expects; sends
and receives; returns the value that was popped, or how many bytes came if they look otherwise."""
gather: Callable[[list[Any], list[Any], Any, int], None] | None = None
"""Takes buffers to copy from, as many to copy into, the int64 numbers of the rows that each of
these gets, and how many threads share the work."""

if not TYPE_CHECKING and os.environ.get("AGENTLACE_PURE") != "1":
    try:
        import agentlace._native as _native
    except ImportError:  # a platform without a wheel of its own, and without a compiler
        pass
    else:
        if _native.VERSION == VERSION:
            frame, opened = _native.frame, _native.opened
            spin, trade = _native.spin, _native.trade
            gather = _native.gather
