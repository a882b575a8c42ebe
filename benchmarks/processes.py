"""The outside of a measured process: started, asked, bounded in time, and ended for certain."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.errors import ProgramFailed, RowTimeout

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 8.0


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Deadline:
    """The end of a row's time."""

    def __init__(self, bound_s):
        self.bound_s = bound_s
        self._end = time.monotonic() + bound_s

    def left_s(self, at_most=float("inf")):
        """Return the seconds that are left; raise RowTimeout if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise RowTimeout(f"the row's {self.bound_s:g} s are over")
        return min(left, at_most)


class Program:
    """One worker: ``python -m MODULE ROLE ARGUMENTS`` in a process group of its own."""

    def __init__(self, module, role, args, deadline, python=sys.executable, environment=()):
        self.name = f"{module.rsplit('.', 1)[-1]} {role}"
        self._deadline = deadline
        self._errors = tempfile.TemporaryFile()
        env = {**os.environ, "PYTHONPATH": str(ROOT), **dict(environment)}
        self._process = subprocess.Popen(
            [python, "-m", module, role, json.dumps(args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self):
        return self._process.pid

    def _read(self):
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({"error": "it ended"})

    def ready(self):
        """Wait until the worker has announced itself."""
        self._answer(START_TIMEOUT_S)
        return self

    def ask(self, do, timeout_s=120.0, **args):
        """Have a command executed and return its value."""
        self.tell(do, **args)
        return self.answer(timeout_s)

    def tell(self, do, **args):
        """Send a command; its value is to be fetched with :meth:`answer`."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **args}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ProgramFailed(f"{self.name}: it ended{self._last_words()}") from error

    def answer(self, timeout_s=120.0):
        return self._answer(timeout_s)

    def _answer(self, timeout_s):
        limit = self._deadline.left_s(timeout_s)
        try:
            answer = self._answers.get(timeout=limit)
        except queue.Empty:
            self._deadline.left_s()
            raise ProgramFailed(f"{self.name}: no answer within {limit:.0f} s") from None
        if "error" in answer:
            raise ProgramFailed(f"{self.name}: {answer['error']}{self._last_words()}")
        return answer["value"]

    def _last_words(self):
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:300]})" if lines else ""

    def stop(self):
        """End the worker and whatever it has started; idempotent."""
        if self._errors.closed:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
