"""Helpers of the services' tests: waiting, programs of their own process, a proxy that loses."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from agentlace.transport.connection import Broker

DEADLINE_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition, timeout_s=DEADLINE_S, what="the condition"):
    """Return the condition's first true value; fail if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.002)
    return value


def holds_for(condition, duration_s, what="the condition"):
    """Fail as soon as a condition that is to stay true is not."""
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        assert condition(), f"{what} ceased to be true"
        time.sleep(0.002)


def assert_same(found, expected, path=""):
    """Compare two trees exactly: types, keys in any order, dtypes, shapes, values."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), path
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected), path
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{path}/{i}")
    else:
        assert type(found) is type(expected), f"{path}: {type(found)} for {type(expected)}"
        if isinstance(expected, np.ndarray):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
        assert np.array_equal(found, expected), path


class Log(list):
    """Thread-safe enough for tests: what callbacks were called with."""

    def __call__(self, *args):
        self.append(args[0] if len(args) == 1 else args)

    def wait(self, n=1, timeout_s=DEADLINE_S):
        wait_until(lambda: len(self) >= n, timeout_s, f"{n} calls (there are {len(self)})")
        return self


class InThread:
    """A call in a thread of its own, whose result or error is asked for later."""

    def __init__(self, call):
        self._outcome = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call):
        try:
            self._outcome.put((call(), None))
        except BaseException as error:
            self._outcome.put((None, error))

    @property
    def is_running(self):
        return self._thread.is_alive()

    def result(self, timeout_s=DEADLINE_S):
        value, error = self._outcome.get(timeout=timeout_s)
        if error is not None:
            raise error
        return value


class Program:
    """A Python program in a process of its own, whose lines are read as they come.

    Killed at the end of the test at the latest. A context manager.
    """

    def __init__(self, source, *args, broker=None, **environment):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
        env.pop("AGENTLACE_BROKER", None)
        if broker is not None:
            env["AGENTLACE_BROKER"] = str(broker)
        self.lines = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, args)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def line(self, text, timeout_s=DEADLINE_S, after=0):
        """Return the first line that holds a text, from number ``after`` on."""

        def found():
            return next((line for line in self.lines[after:] if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.process.poll() is not None, timeout_s)
        self._reader.join(0 if self.process.poll() is None else timeout_s)
        assert found(), f"no line with {text!r}:\n" + "\n".join(self.lines[-40:])
        return found()

    def tell(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def wait(self, timeout_s=DEADLINE_S):
        """Return the exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def kill(self):
        """End it as a power cut would."""
        self.process.kill()
        self.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._reader.join(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class LossyProxy:
    """A TCP proxy to a broker. While ``deaf``, what the broker says does not come back.

    ``cut`` ends all connections at once. A context manager.
    """

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.deaf = threading.Event()
        self._pairs = []
        self._lock = threading.Lock()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.append((client, server))
            for args in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, source, sink, back):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not (back and self.deaf.is_set()):
                    sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self):
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.cut()


def stay_on_tcp(monkeypatch):
    """Keep clients from moving to the broker's Unix socket, past a proxy."""
    monkeypatch.setattr(Broker, "_moved_to_socket", lambda self, connection, timeout_s: connection)
