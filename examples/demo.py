#!/usr/bin/env python3
"""Learn Pendulum-v1 with a broker, a learner and an actor, each a process of its own.

Takes about a minute on two cores. Leaves the learning curve in `runs/demo/learner/return.png`
and ends with 0 if the last ten episodes returned -250 or better on average (a random policy
gets about -1200).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interrupt import INTERRUPTED

GOOD_RETURN = -250.0
BROKER_DEADLINE_S = 15.0
DEMO_DEADLINE_S = 600.0
GOODBYE_S = 5.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

PROGRAM = [sys.executable, str(Path(__file__).with_name("async_learner_actor.py"))]
FLAGS = "--env Pendulum-v1 --utd_ratio 2 --batch_size 128 --hidden 128 128 --learning_rate 1e-3"


class Children:
    """The processes of the demo: their lines go to our output, and none outlives us."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._followers: list[threading.Thread] = []
        self._ended: queue.Queue[tuple[str, int]] = queue.Queue()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: Any) -> None:
        # An impatient second Ctrl-C must not leave children behind.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # The broker last, when nobody needs it any more.
        broker = self._running.pop("broker", None)
        _end(self._running.values())
        _end([broker] if broker else [])
        for follower in self._followers:
            follower.join(1.0)  # their last lines

    def start(self, name: str, command: list[str]) -> subprocess.Popen[str]:
        """Start a process; it gets no Ctrl-C from the terminal, only from us."""
        child = self._running[name] = subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        follow = threading.Thread(target=self._follow, args=(name, child), name=name, daemon=True)
        self._followers.append(follow)
        follow.start()
        return child

    def _follow(self, name: str, child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            print(f"{'' if line.startswith(name) else name + ': '}{line}", end="", flush=True)
        self._ended.put((name, child.wait()))

    def join(self, *names: str) -> None:
        """Return when these have ended well.

        Raises:
            SystemExit: One of the processes ended otherwise, or they take too long.
        """
        waiting = set(names)
        while waiting:
            try:
                name, code = self._ended.get(timeout=DEMO_DEADLINE_S)
            except queue.Empty:
                raise SystemExit(f"demo: no end after {DEMO_DEADLINE_S:.0f} s") from None
            if code or name not in waiting:
                raise SystemExit(f"demo: the {name} ended unexpectedly, with code {code}")
            waiting.remove(name)


def _end(children: Iterable[subprocess.Popen[str]]) -> None:
    """End processes, all at the same time; those that do not obey in time are killed."""
    children = list(children)
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GOODBYE_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(children: Children, port: int, directory: str) -> None:
    """Start the embedded broker and return when it listens."""
    command = [sys.executable, "-m", "agentlace", "broker", "--host", "127.0.0.1"]
    child = children.start("broker", [*command, "--port", str(port), "--dir", directory])
    for _ in range(int(BROKER_DEADLINE_S / 0.1)):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            pass
        try:
            raise SystemExit(f"demo: the broker ended, with code {child.wait(0.1)}")
        except subprocess.TimeoutExpired:
            continue
    raise SystemExit(f"demo: no broker on port {port} after {BROKER_DEADLINE_S:.0f} s")


def play(args: argparse.Namespace, scratch: str) -> None:
    """Run broker, learner and actor until the latter two have ended."""
    port = free_port()
    environment = {
        # Learner and actor share two cores: one thread each is faster than two.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "AGENTLACE_BROKER": f"redis://127.0.0.1:{port}",
    }
    flags = [*FLAGS.split(), "--seed", str(args.seed), "--max_steps", str(args.max_steps)]
    with Children(environment) as children:
        start_broker(children, port, scratch)
        for role in ("learner", "actor"):
            run_dir = ["--run_dir", str(args.run_dir / role)]
            children.start(role, [*PROGRAM, f"--{role}", *flags, *run_dir])
        children.join("learner", "actor")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--max_steps", type=int, default=8000, help="[%(default)s]")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="[%(default)s]")
    args = parser.parse_args()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    shutil.rmtree(args.run_dir, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix="agentlace-demo-") as scratch:
            play(args, scratch)
    except KeyboardInterrupt:
        print(f"\ndemo: interrupted; what there is of the run is in {args.run_dir}", flush=True)
        return INTERRUPTED
    value = json.loads((args.run_dir / "actor" / "summary.json").read_text())["final_return"]
    print(f"\nlearning curve: {args.run_dir / 'learner' / 'return.png'}")
    print(f"final return:   {value} (mean of the last ten episodes; {GOOD_RETURN:.0f} is good)")
    return 0 if value is not None and value >= GOOD_RETURN else 1


if __name__ == "__main__":
    sys.exit(main())
