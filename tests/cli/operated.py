"""A running system for the commands that look at one, and the command itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
from typer.testing import CliRunner

from agentlace import (
    ActionConfig,
    ActionServer,
    InferenceServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.cli.app import app
from agentlace.data import QueuedDataStore
from tests.services.support import wait_until

TRAINER = TrainerConfig(request_types=["done"])
ROBOT = ActionConfig(5556, ["move"], ["image", "state"], broadcast_port=5557)


def run(*arguments):
    """Run the command in this process; returns its result, or raises its error."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments):
    return json.loads(run(*arguments).stdout)


@contextlib.contextmanager
def trainer_and_actor(buffer=None):
    """A trainer and an actor of store env; yields both, and what takes the actor's transitions."""
    store, queue = buffer if buffer is not None else QueuedDataStore(1000), QueuedDataStore(1000)
    with TrainerServer(TRAINER, request_callback=lambda kind, payload: {kind: payload}) as server:
        server.register_data_store("env", store)
        server.start(threaded=True)
        with TrainerClient("env", "localhost", TRAINER, queue, actor_id="robot-1") as client:
            yield server, client, queue


@contextlib.contextmanager
def robot():
    """A robot whose actions are kept; yields it and them."""
    acted = []

    def act(key, payload):
        acted.append((key, payload))
        return {"done": True, "moved": payload.get("delta")}

    def observe(keys):
        seen = {"image": np.zeros((4, 4, 3), np.uint8), "state": np.arange(7.0)}
        return {key: seen[key] for key in sorted(keys)}

    with ActionServer(ROBOT, observe, act) as server:
        server.start(threaded=True)
        yield server, acted


@contextlib.contextmanager
def policy():
    with InferenceServer(5600) as server:
        server.register_interface("policy", lambda payload: {"action": 2 * payload["state"]})
        server.start(threaded=True)
        yield server


def insert(client, queue, count, start=0):
    for number in range(start, start + count):
        queue.insert({"observations": np.full(3, number, np.float32), "rewards": float(number)})
        wait_until(client.update)


class Command:
    """The command in a process of its own, ended by Ctrl-C."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentlace", *map(str, arguments)],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self, text):
        """Return the first line from now on that holds a text."""
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r}: {self.process.stderr.read()}")

    def interrupt(self):
        """Press Ctrl-C; returns status and what it then said."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
