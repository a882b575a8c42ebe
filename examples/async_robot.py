#!/usr/bin/env python3
"""A MuJoCo arm at 50 Hz whose policy takes 150 ms to think, elsewhere.

    python examples/async_robot.py

The arm's tip is to follow a circle. Its policy runs in another process: from the arm's state it
plans the torques of half a second with a model of the arm, as a diffusion policy or a VLA answers
in action chunks. The arm is driven twice, in real time: by a loop that waits for each answer while
the arm goes on with the last torque, and by a ChunkedPolicyClient, which asks in the background.
Leaves `async_robot.png` with both paths in the run directory, and `summary.json`.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from interrupt import INTERRUPTED
from reach_env import FORE_M, UPPER_M
from report import write_summary

from agentlace import ChunkedPolicyClient, InferenceClient, InferenceServer

matplotlib.use("Agg")
from matplotlib import pyplot

PORT = 5580
RATE_HZ = 50.0
CHUNK = 25
LAP_S, RADIUS_M, CENTRE_M = 2.0, 0.06, (0.12, 0.0)
STIFFNESS, DAMPING = 4.0, 0.3
CONNECT_S = 30.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--policy", action="store_true", help="only serve the policy, until Ctrl-C")
    add("--robot", action="store_true", help="only drive the arm; the policy runs elsewhere")
    add("--ip", default="localhost", help="the broker's host [%(default)s]")
    add("--think_ms", type=float, default=150.0, help="of each call [%(default)s]")
    add("--seconds", type=float, default=8.0, help="of each of the two drives [%(default)s]")
    add("--run_dir", type=Path, default=Path("runs/async_robot"), help="[%(default)s]")
    return parser.parse_args(argv)


def target(seconds: float) -> np.ndarray:
    """Return where the tip should be, in metres (2,)."""
    angle = 2 * np.pi * seconds / LAP_S
    return np.array(CENTRE_M) + RADIUS_M * np.array([np.cos(angle), np.sin(angle)])


def joints_for(tip: np.ndarray) -> np.ndarray:
    """Return the joint angles (2,) that bring the tip there; the elbow bends one way."""
    bend = (tip @ tip - UPPER_M**2 - FORE_M**2) / (2 * UPPER_M * FORE_M)
    elbow = np.arccos(np.clip(bend, -1, 1))
    inner = np.arctan2(FORE_M * np.sin(elbow), UPPER_M + FORE_M * np.cos(elbow))
    return np.array([np.arctan2(tip[1], tip[0]) - inner, elbow])


class Arm:
    """MuJoCo's Reacher; 0.02 s a step."""

    def __init__(self) -> None:
        self._env = gym.make("Reacher-v5").unwrapped
        self._env.reset(seed=0)

    def place(self, angles: np.ndarray, velocities: np.ndarray) -> None:
        """Set the arm's state: radians (2,) and radians per second (2,)."""
        qpos, qvel = self._env.data.qpos.copy(), np.zeros_like(self._env.data.qvel)
        qpos[:2], qvel[:2] = angles, velocities
        self._env.set_state(qpos, qvel)

    def step(self, torque: np.ndarray) -> None:
        """Go on for 0.02 s."""
        self._env.do_simulation(np.clip(torque, -1, 1), self._env.frame_skip)

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """Angles and velocities, float64 of shape (2,) each."""
        return self._env.data.qpos[:2].copy(), self._env.data.qvel[:2].copy()

    @property
    def tip(self) -> np.ndarray:
        """Where the tip is, in metres (2,)."""
        return self._env.get_body_com("fingertip")[:2].copy()


class Policy:
    """Plans the torques of a chunk by driving a model of the arm along the circle."""

    def __init__(self, think_ms: float) -> None:
        self._arm = Arm()
        self._think_s = think_ms / 1000
        self._thinking = threading.Event()
        self.calls = 0

    def __call__(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        begin, self.calls = time.monotonic(), self.calls + 1
        self._arm.place(observation["angles"], observation["velocities"])
        torques = np.empty((CHUNK, 2), np.float32)
        for i in range(CHUNK):
            torques[i] = self._torque(float(observation["seconds"]) + (i + 1) / RATE_HZ)
            self._arm.step(torques[i])
        self._thinking.wait(self._think_s - (time.monotonic() - begin))  # as a large model would
        return {"actions": torques}

    def _torque(self, seconds: float) -> np.ndarray:
        angles, velocities = self._arm.state
        wanted = joints_for(target(seconds))
        speed = (joints_for(target(seconds + 0.01)) - joints_for(target(seconds - 0.01))) / 0.02
        off = (wanted - angles + np.pi) % (2 * np.pi) - np.pi
        return np.clip(STIFFNESS * off + DAMPING * (speed - velocities), -1, 1)


def serve(args: argparse.Namespace) -> None:
    """Serve the policy until Ctrl-C or SIGTERM."""
    with InferenceServer(PORT) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        policy = Policy(args.think_ms)
        server.register_interface("circle", policy)
        print(f"serving the policy: {args.think_ms:g} ms a call, {CHUNK} torques each", flush=True)
        try:
            server.start()
        except KeyboardInterrupt:
            pass
        print(f"served {policy.calls} calls", flush=True)


class Drive:
    """One drive of the arm along the circle, in real time.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.arm = Arm()
        self.arm.place(joints_for(target(0.0)), np.zeros(2))
        self._ticks = int(seconds * RATE_HZ)
        self._done = threading.Event()
        self.tips, self.torques = [], []

    def observation(self) -> dict[str, Any]:
        """Return what the policy needs to know now."""
        angles, velocities = self.arm.state
        seconds = len(self.tips) / RATE_HZ
        return {"angles": angles, "velocities": velocities, "seconds": seconds}

    def run(self, act: Any) -> None:
        """Ask ``act`` for the torque of each tick, and keep the clock."""
        begin = time.monotonic()
        for tick in range(self._ticks):
            torque = act(self.observation())
            self.arm.step(torque)
            self.tips.append(self.arm.tip)
            self.torques.append(np.array(torque))
            self._done.wait(max(0.0, begin + (tick + 1) / RATE_HZ - time.monotonic()))

    def measure(self) -> dict[str, float]:
        """Return how far off the tip was, and how much the torque jumped, after a second."""
        if len(self.tips) < 2 * RATE_HZ:
            return {}
        wanted = [target((i + 1) / RATE_HZ) for i in range(len(self.tips))]
        off = np.linalg.norm(np.array(self.tips) - wanted, axis=1)[int(RATE_HZ) :]
        jumps = np.abs(np.diff(self.torques, axis=0))[int(RATE_HZ) :]
        return {
            "rms_error_mm": round(1000 * float(np.sqrt((off**2).mean())), 2),
            "largest_error_mm": round(1000 * float(off.max()), 2),
            "mean_torque_jump": round(float(jumps.mean()), 4),
        }


class Waiting:
    """The simple loop: waits for an answer and plays its first torque until the next has come.

    The arm does not wait: the call is made beside it, one after the other.
    """

    def __init__(self, client: InferenceClient) -> None:
        self._client = client
        self._thread: threading.Thread | None = None
        self._torque = np.zeros(2)

    def __call__(self, observation: dict[str, Any]) -> np.ndarray:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, args=(observation,), daemon=True)
            self._thread.start()
        return self._torque

    def _ask(self, observation: dict[str, Any]) -> None:
        answer = self._client.call("circle", observation)
        if answer is not None:
            self._torque = answer["actions"][0]


def drive(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    """Drive both ways; notes what was measured in the summary as it comes, saves the picture."""
    args.run_dir.mkdir(parents=True, exist_ok=True)
    with InferenceClient(args.ip, PORT, timeout_ms=2000) as client:
        await_policy(client)
        waiting, chunked = Drive(args.seconds), Drive(args.seconds)
        print("driving with a loop that waits for the policy", flush=True)
        waiting.run(Waiting(client))
        summary["waiting"] = waiting.measure()
        print("driving with a ChunkedPolicyClient", flush=True)
        with ChunkedPolicyClient(client, "circle", CHUNK, rate_hz=RATE_HZ) as policy:
            policy.start(chunked.observation())
            chunked.run(policy.step)
            summary["chunked"] = {**chunked.measure(), "underruns": policy.underruns}
            summary["latency_ms"] = round(1000 * (policy.latency_s or 0.0), 1)
    draw(args.run_dir / "async_robot.png", {"waits": waiting, "chunk client": chunked})


def await_policy(client: InferenceClient) -> None:
    """Wait for the policy server; says so, and gives up after CONNECT_S."""
    deadline, pause = time.monotonic() + CONNECT_S, threading.Event()
    while "circle" not in client.interfaces():
        if time.monotonic() > deadline:
            raise SystemExit(f"no policy server within {CONNECT_S:g} s: {client.last_error}")
        pause.wait(0.2)


def draw(path: Path, drives: dict[str, Drive]) -> None:
    """Save the tips' paths beside each other, with the torques below."""
    figure, axes = pyplot.subplots(2, len(drives), figsize=(10, 8))
    circle = np.array([target(t) for t in np.linspace(0, LAP_S, 100)])
    for column, (name, drive) in zip(axes.T, drives.items(), strict=True):
        tips, torques = np.array(drive.tips), np.array(drive.torques)
        column[0].plot(*circle.T, "k--", lw=1, label="wanted")
        column[0].plot(*tips.T, lw=1, label="tip")
        off = drive.measure()["rms_error_mm"]
        column[0].set(title=f"{name}: {off:g} mm off (RMS)", xlabel="m", ylabel="m", aspect="equal")
        column[0].set(xlim=(-0.02, 0.24), ylim=(-0.13, 0.13))
        column[0].legend(loc="upper left")
        column[1].plot(np.arange(len(torques)) / RATE_HZ, torques, lw=0.8)
        column[1].set(xlabel="s", ylabel="torque", ylim=(-1.05, 1.05))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"both drives: {path}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the policy, the robot, or both; returns the exit status."""
    args = parse_args(argv)
    if args.policy:
        serve(args)
        return 0
    policy, status, summary = None, 0, dict[str, Any]()
    try:
        if not args.robot:
            flags = ["--policy", "--think_ms", str(args.think_ms)]
            # Out of the terminal's reach: Ctrl-C is for this process, which ends the other.
            command = [sys.executable, __file__, *flags]
            policy = subprocess.Popen(command, start_new_session=True)
        drive(args, summary)
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        if policy is not None:
            policy.terminate()
            policy.wait(20)
    write_summary(args.run_dir, summary)
    for name in ("waiting", "chunked"):
        print(f"{name:>8}: {summary.get(name, 'not driven to its end')}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
