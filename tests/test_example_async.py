"""The SAC example as its users run it: real processes, a real broker, a short run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentlace.config import BrokerURL
from agentlace.operating import take
from agentlace.rlds.reader import DatasetReader
from agentlace.transport.connection import Broker

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "async_learner_actor.py"
DEMO = ROOT / "examples" / "demo.py"
DEADLINE_S = 100.0
STEPS = 600
FLAGS = (
    f"--env Pendulum-v1 --max_steps {STEPS} --random_steps 200 --training_starts 200 "
    "--batch_size 16 --hidden 16 --utd_ratio 2 --steps_per_update 20"
).split()

Start = Callable[..., "subprocess.Popen[str]"]

needs_sac = pytest.mark.skipif(
    not all(find_spec(name) for name in ("flax", "gymnasium", "matplotlib", "optax")),
    reason="needs agentlace[examples]",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program with flags; whatever still runs at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def start(*flags: str, broker: str = "", program: Path = PROGRAM) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        child = subprocess.Popen(
            [sys.executable, str(program), *flags],
            cwd=tmp_path,
            env={**env, "AGENTLACE_BROKER": broker} if broker else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a child's end and return its exit code and its output."""
    output, _ = child.communicate(timeout=DEADLINE_S)
    return child.returncode, output


def summary_of(run_dir: Path, output: str) -> dict[str, Any]:
    """Return summary.json, which must also be the output's last line."""
    text = (run_dir / "summary.json").read_text()
    assert output.splitlines()[-1] == text.strip()
    return json.loads(text)


def curve_of(run_dir: Path) -> list[tuple[int, float]]:
    """Return returns.csv as (environment step, return) of each episode."""
    head, *rows = (run_dir / "returns.csv").read_text().splitlines()
    assert head == "step,return"
    return [(int(step), float(value)) for step, value in (row.split(",") for row in rows)]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@needs_sac
def test_learner_and_actor_end_by_themselves(start: Start, tmp_path: Path, broker_url: str) -> None:
    learner = start("--learner", *FLAGS, "--rlds_log_dir", "logs", broker=broker_url)
    actor = start("--actor", *FLAGS, broker=broker_url)

    code, output = ended(actor)
    assert code == 0, output
    acted = summary_of(tmp_path / "runs/Pendulum-v1-0-actor", output)
    assert (acted["env"], acted["seed"], acted["steps"]) == ("Pendulum-v1", 0, STEPS)
    assert acted["episodes"] == STEPS // 200
    assert acted["final_return"] < 0
    assert acted["policy_version"] > 1

    code, output = ended(learner)
    assert code == 0, output
    run_dir = tmp_path / "runs/Pendulum-v1-0-learner"
    learned = summary_of(run_dir, output)
    assert learned["steps"] == STEPS
    assert learned["updates"] == 2 * STEPS
    assert learned["final_return"] == acted["final_return"]
    assert learned["policy_version"] >= acted["policy_version"]
    assert is_png(run_dir / "return.png")
    curve = curve_of(run_dir)
    assert [step for step, _ in curve] == [200, 400, 600]
    assert learned["final_return"] == pytest.approx(sum(value for _, value in curve) / 3, abs=0.06)
    check_recorded(tmp_path, [value for _, value in curve])


def check_recorded(tmp_path: Path, returns: list[float]) -> None:
    reader = DatasetReader(tmp_path / "logs/pendulum_v1/0.1.0")
    episodes = list(reader.episodes())
    assert [len(episode) for episode in episodes] == [201] * len(returns)
    assert {episode.ending for episode in episodes} == {"truncated"}
    assert [e.episode_return for e in episodes] == pytest.approx(returns, abs=0.06)


@needs_sac
def test_a_restarted_learner_goes_on(start: Start, tmp_path: Path, broker_url: str) -> None:
    actor = start("--actor", *FLAGS, broker=broker_url)
    learner = start("--learner", *FLAGS, "--training_starts", "200000", broker=broker_url)
    wait_for_line(learner, "learner: waiting for transitions")
    learner.kill()

    learner = start("--learner", *FLAGS, "--actor_timeout_s", "20", broker=broker_url)
    for child in (actor, learner):
        code, output = ended(child)
        assert code == 0, output
    summary = json.loads((tmp_path / "runs/Pendulum-v1-0-learner/summary.json").read_text())
    assert (summary["steps"], summary["updates"]) == (STEPS, 2 * STEPS)


@needs_sac
def test_a_killed_learner_goes_on_from_its_checkpoint(
    start: Start, tmp_path: Path, broker_url: str
) -> None:
    """What it has learned is not learned again, what came meanwhile is."""
    flags = (*FLAGS, "--checkpoint", "checkpoint", "--checkpoint_every_s", "0.2")
    learner = start("--learner", *flags, broker=broker_url)
    actor = start("--actor", *FLAGS, "--max_steps", "100000", broker=broker_url)
    deadline = time.monotonic() + DEADLINE_S
    while not (saved := saved_steps(tmp_path / "checkpoint")):
        assert time.monotonic() < deadline and learner.poll() is None
        time.sleep(0.02)
    while not reported(broker_url) >= {("trainer", "critic_loss"), ("actor", "episode_return")}:
        assert time.monotonic() < deadline and learner.poll() is None
        time.sleep(0.02)
    learner.kill()

    learner = start("--learner", *flags, "--actor_timeout_s", "3", broker=broker_url)
    wait_for_line(learner, "learner: goes on after ")
    while saved_steps(tmp_path / "checkpoint") < saved + 200:
        assert time.monotonic() < deadline and learner.poll() is None
        time.sleep(0.02)
    actor.kill()
    code, output = ended(learner)
    assert code == 0, output
    summary = summary_of(tmp_path / "runs/Pendulum-v1-0-learner", output)
    assert 0 <= summary["steps"] - summary["updates"] // 2 < 20
    assert saved_steps(tmp_path / "checkpoint") == summary["updates"] // 2


def reported(broker_url: str) -> set[tuple[str, str]]:
    """Return what programs report, as (role, name); what dashboard and Prometheus show."""
    broker = Broker(BrokerURL.parse(broker_url))
    with contextlib.closing(broker.channel()) as channel:
        peers = take(channel, broker.url.namespace).peers
    samples = [(peer.does, sample) for peer in peers for sample in peer.samples]
    return {(does, s.labels["name"]) for does, s in samples if s.name == "reported"}


def saved_steps(folder: Path) -> int:
    """Return how many steps the checkpoint's agent has learned from; 0 without a checkpoint."""
    from agentlace.codec import decode

    try:
        manifest = json.loads(json.loads((folder / "checkpoint.json").read_bytes())["content"])
        frames = [(folder / file["file"]).read_bytes() for file in manifest["extra"] or ()]
    except FileNotFoundError:
        return 0
    trees = [decode(bytearray(frame)).tree for frame in frames]
    return next((tree["learned"] for tree in trees if "learned" in tree), 0)


@needs_sac
def test_an_interrupt_ends_it_with_what_there_is(
    start: Start, tmp_path: Path, broker_url: str
) -> None:
    learner = start("--learner", *FLAGS, broker=broker_url)
    wait_for_line(learner, "learner: waiting for transitions, 0 of 200")
    learner.send_signal(signal.SIGINT)
    code, output = ended(learner)
    assert code == 130, output
    run_dir = tmp_path / "runs/Pendulum-v1-0-learner"
    assert summary_of(run_dir, output)["steps"] == 0
    assert is_png(run_dir / "return.png")


@needs_sac
def test_the_learner_ends_without_its_actor(start: Start, tmp_path: Path, broker_url: str) -> None:
    learner = start("--learner", *FLAGS, "--actor_timeout_s", "2", broker=broker_url)
    actor = start("--actor", *FLAGS, "--max_steps", "100000", broker=broker_url)
    wait_for_line(actor, "actor: step")
    actor.kill()
    code, output = ended(learner)
    assert code == 0, output
    assert 0 < json.loads(output.splitlines()[-1])["steps"] < 100_000


@needs_sac
def test_one_process_is_both(start: Start, tmp_path: Path) -> None:
    code, output = ended(start(*FLAGS, "--run_dir", "both", broker="redis://127.0.0.1:1"))
    assert code == 0, output
    summary = summary_of(tmp_path / "both", output)
    assert summary["role"] == "both"
    assert (summary["steps"], summary["updates"]) == (STEPS, 2 * STEPS)
    assert summary["final_return"] < 0
    assert len(curve_of(tmp_path / "both")) == STEPS // 200
    assert is_png(tmp_path / "both" / "return.png")


@needs_sac
def test_the_learner_may_keep_trajectories(start: Start, tmp_path: Path, broker_url: str) -> None:
    learner = start("--learner", "--use_traj_buffer", *FLAGS, broker=broker_url)
    actor = start("--actor", *FLAGS, broker=broker_url)
    for child in (actor, learner):
        code, output = ended(child)
        assert code == 0, output
    learned = summary_of(tmp_path / "runs/Pendulum-v1-0-learner", output)
    assert (learned["steps"], learned["updates"]) == (STEPS, 2 * STEPS)


@needs_sac
def test_the_demo_tells_that_it_did_not_learn(start: Start, tmp_path: Path) -> None:
    code, output = ended(start("--max_steps", "400", program=DEMO))
    assert code == 1, output
    value = json.loads((tmp_path / "runs/demo/actor/summary.json").read_text())["final_return"]
    assert value < -250
    assert f"final return:   {value}" in output
    assert is_png(tmp_path / "runs/demo/learner/return.png")


def test_help_needs_nothing_heavy(start: Start) -> None:
    code, output = ended(start("--help"))
    assert code == 0
    for flag in ("--learner", "--actor", "--ip", "--env", "--max_ahead", "HalfCheetah-v4"):
        assert flag in output


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--actor", "--checkpoint", "c"], "--checkpoint is for a learner"),
        (["--actor", "--rlds_log_dir", "logs"], "is for the learner"),
        (["--batch_size", "0"], "not a positive number"),
    ],
)
def test_flags_that_cannot_be_obeyed(start: Start, flags: list[str], reason: str) -> None:
    code, output = ended(start(*flags))
    assert code == 2
    assert reason in output


def wait_for_line(child: subprocess.Popen[str], text: str) -> None:
    """Read a child's output up to the first line with this text."""
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"no line with {text!r} in:\n{''.join(seen)}")
