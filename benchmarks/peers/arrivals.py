"""What trainers publish and what actors note; shared by all contestants."""

import threading
import time

import numpy as np

from benchmarks import payloads

TIMEOUT_S = 60.0


class Networks:
    """Versions of a network: all leaves differ from the version before, but for a frozen share."""

    def __init__(self, nbytes, frozen=0.0):
        encoder = payloads.network(int(nbytes * frozen), 0, leaves=5) if frozen else {}
        self._trees = [
            {"encoder": encoder, "heads": payloads.network(int(nbytes * (1 - frozen)), seed)}
            for seed in (1, 2)
        ]
        self._version = 0

    def next(self):
        """Return the next version's number and its tree."""
        self._version += 1
        tree = self._trees[self._version % 2]
        tree["version"] = np.array([self._version])
        return self._version, tree


class Arrivals:
    """Notes when each version arrived, and which was the last."""

    def __init__(self):
        self._changed = threading.Condition()
        self._times = {}

    def __call__(self, tree):
        now = time.monotonic_ns()
        with self._changed:
            self._times[int(tree["version"][0])] = now
            self._changed.notify_all()

    def wait(self, version, timeout_s=TIMEOUT_S):
        """Return the time at which a version had arrived."""
        with self._changed:
            if not self._changed.wait_for(lambda: version in self._times, timeout_s):
                raise TimeoutError(f"version {version} has not arrived, but {list(self._times)}")
            return self._times[version]
