"""What still runs when its program ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Any

from agentlace.metrics import endpoint

running: weakref.WeakSet[Any] = weakref.WeakSet()
"""Servers and clients that were started and not stopped."""


def started(node: Any) -> None:
    """Note that a node runs: it is stopped at the end of its program, and its numbers shown."""
    running.add(node)
    node.telemetry.begin()
    endpoint.serve_if_asked()


def stopped(node: Any) -> None:
    """Note that a node does not run any more. Idempotent."""
    running.discard(node)
    node.telemetry.end()
    if not running:
        endpoint.end_if_asked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=running.clear)  # they are the parent's


@atexit.register
def _say_goodbye() -> None:
    """Stop what a program left running, so that its peers need not wait to notice."""
    for node in list(running):
        with contextlib.suppress(Exception):
            node.stop()
