"""Which node a process is, told so that others can tell whether it still lives."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from typing import Any


def describe(role: str, name: str, **more: Any) -> dict[str, Any]:
    """Return what a node says of itself."""
    return {
        "role": role,
        "name": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "started": _start_time(os.getpid()),
        "token": uuid.uuid4().hex,
        **more,
    }


def _machine() -> str:
    """Return what tells this running machine (or container) from all others, empty if unknown.

    Not the host's name: robots are cloned from one image, and containers may share their host's.
    """
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot_id:
        return f"{boot_id.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_time(pid: int) -> str:
    """Return what tells a process from a later one with the same ID, empty if unknown."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as status:
        return status.read().rsplit(")", 1)[1].split()[19]
    return ""


def is_dead(peer: dict[str, Any]) -> bool:
    """Whether the peer certainly is dead: it ran on this machine, and its process is gone."""
    if not peer.get("machine") or peer["machine"] != _machine():
        return False
    try:
        os.kill(peer["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return bool(peer.get("started")) and _start_time(peer["pid"]) not in ("", peer["started"])
