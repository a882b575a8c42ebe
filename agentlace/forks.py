"""What a child process may not do with what its parent has made.

A child (``os.fork``, or multiprocessing's fork method) gets a copy of everything but the threads,
and shares the sockets and files. So a node, a connection or an open dataset belongs to the process
that made it, and says so in any other one; locks that another thread may have held are free.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, TypeVar

from agentlace.errors import Closed

TODO = "make it in the child process, or start processes with multiprocessing's spawn method"
L = TypeVar("L")

_process = 0
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def process_number() -> int:
    """Return a number that is another one in a child process."""
    return _process


def check_process(made_in: int, what: str) -> None:
    """Check that something is used where it was made.

    Args:
        made_in: what :func:`process_number` returned there.
        what: is named in the error.

    Raises:
        Closed: this is a child of the process that made it.
    """
    if made_in != _process:
        raise Closed(f"{what} was made before a fork, and belongs to the parent: {TODO}")


def freed_by_fork(lock: L) -> L:
    """Return a lock or condition that a child process gets free, whoever held it at the fork."""
    _locks.add(lock)
    return lock


def _enter_child() -> None:
    global _process
    _process += 1
    for lock in list(_locks):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)
