"""Ctrl-C ends every example, in every role, soon and with a summary; never with a traceback."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RUNS_S = 60.0
"""So long an example may take to say that it runs; a busy machine compiles for a while."""
ENDS_S = 10.0
"""It ends within two seconds where nothing else runs."""
SHORT = (
    "--env Pendulum-v1 --max_steps 100000 --random_steps 200 --training_starts 200 "
    "--batch_size 16 --hidden 16 --steps_per_update 20"
).split()
RLPD = "--hidden 16 --batch_size 16 --demos 2".split()
NEEDS = ("cv2", "flax", "gymnasium", "matplotlib", "mujoco", "optax")
pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in NEEDS), reason="needs agentlace[examples]"
)


class Example:
    """A process whose lines are read as they come; as from a terminal, it hears of Ctrl-C."""

    def __init__(self, folder: Path, broker: str, name: str, *flags: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        env |= {"JAX_PLATFORMS": "cpu", "SDL_VIDEODRIVER": "dummy", "AGENTLACE_BROKER": broker}
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *flags],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._queue.put(line.rstrip())
        self._queue.put(None)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> None:
        """Wait for a line with this text, without which it does not run yet."""
        deadline = time.monotonic() + RUNS_S
        while not any(text in line for line in self.lines):
            line = self._queue.get(timeout=max(deadline - time.monotonic(), 0.01))
            assert line is not None, f"it ended before it said {text!r}:\n{self.output}"
            self.lines.append(line)

    def interrupt(self) -> float:
        """Send it Ctrl-C; returns the seconds until it had ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(ENDS_S)
        took_s = time.monotonic() - began
        self._reader.join(ENDS_S)
        while (line := self._queue.get(timeout=1)) is not None:
            self.lines.append(line)
        return took_s

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@contextmanager
def example(folder: Path, broker: str, *command: str) -> Iterator[Example]:
    started = Example(folder, broker, *command)
    try:
        yield started
    finally:
        started.end()


CASES: dict[str, dict[str, Any]] = {
    "cartpole server": {
        "command": ["action_cartpole_env.py", "--server"],
        "runs": "serving CartPole",
        "status": 0,
        "summary": {"served_steps"},
    },
    "cartpole client": {
        "command": ["action_cartpole_env.py", "--client", "--episodes", "100000"],
        "beside": ["action_cartpole_env.py", "--server"],
        "beside_runs": "serving CartPole",
        "runs": "episode 2: return",
        "summary": {"returns", "steps"},
    },
    "cartpole alone": {
        "command": ["action_cartpole_env.py", "--episodes", "100000"],
        "runs": "episode 2: return",
        "summary": {"returns", "steps"},
    },
    "streamer server": {
        "command": ["action_streamer.py", "--server"],
        "runs": "source:",
        "status": 0,
        "summary": {"frames"},
    },
    "streamer client": {
        "command": ["action_streamer.py", "--client", "--headless"],
        "beside": ["action_streamer.py", "--server", "--fps", "100"],
        "beside_runs": "source:",
        "runs": "frames/s",
        "status": 0,
        "summary": {"frames", "fps"},
    },
    "policy": {
        "command": ["async_robot.py", "--policy"],
        "runs": "serving the policy",
        "status": 0,
        "says": "served 0 calls",
    },
    "robot": {
        "command": ["async_robot.py", "--seconds", "100"],
        "runs": "driving with a loop",
        "summary": set(),
        "says": "not driven to its end",
    },
    "both": {
        "command": ["async_learner_actor.py", *SHORT],
        "runs": "actor: step",
        "summary": {"updates", "steps", "role"},
    },
    "policy server": {
        "command": ["inference_server.py", "--seconds", "100"],
        "runs": "serving the policy",
        "summary": {"clients", "batches"},
    },
    "demonstrations": {
        "command": ["rlpd_demos.py", "--seeds", "1", "--max_steps", "100000", *RLPD],
        "runs": "seed 0, with demonstrations",
        "summary": {"with demonstrations", "alone"},
    },
    "demo": {
        "command": ["demo.py"],
        "runs": "learner: waiting for transitions",
        "says": "demo: interrupted",
        "summary": set(),
    },
}


def check(case: dict[str, Any], run: Example) -> None:
    took_s = run.interrupt()
    print(f"{case['command'][0]} took {took_s:.2f} s")
    assert run.process.returncode == case.get("status", 130), run.output
    assert "Traceback" not in run.output, run.output
    assert case.get("says", "") in run.output
    if case.get("summary"):
        text = next(line for line in reversed(run.lines) if line[:1] == "{")
        assert case["summary"] <= set(json.loads(text))


@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_ends_it_with_a_summary(name: str, tmp_path: Path, broker_url: str) -> None:
    case = CASES[name]
    if "beside" not in case:
        with example(tmp_path, broker_url, *case["command"]) as run:
            run.wait_for(case["runs"])
            return check(case, run)
    with example(tmp_path, broker_url, *case["beside"]) as beside:
        beside.wait_for(case["beside_runs"])
        with example(tmp_path, broker_url, *case["command"]) as run:
            run.wait_for(case["runs"])
            check(case, run)
        beside.interrupt()
        assert "Traceback" not in beside.output


def test_ctrl_c_ends_an_actor_and_its_learner(tmp_path: Path, broker_url: str) -> None:
    program = "async_learner_actor.py"
    with (
        example(tmp_path, broker_url, program, "--learner", *SHORT) as learner,
        example(tmp_path, broker_url, program, "--actor", *SHORT) as actor,
    ):
        actor.wait_for("actor: step")
        case = {"command": [program], "summary": {"policy_version", "episodes"}}
        check(case, actor)
        check({"command": [program], "summary": {"updates"}}, learner)


def test_ctrl_c_ends_one_that_waits_for_its_server(tmp_path: Path, broker_url: str) -> None:
    with example(tmp_path, broker_url, "async_learner_actor.py", "--actor", *SHORT) as actor:
        actor.wait_for("waiting: no server")
        check({"command": ["--actor"], "summary": {"steps"}}, actor)


def test_every_example_is_here() -> None:
    texts = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    programs = {name for name, text in texts.items() if 'if __name__ == "__main__"' in text}
    assert {case["command"][0] for case in CASES.values()} == programs
