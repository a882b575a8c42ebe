"""The example of learning from demonstrations: the task, its expert, and a short run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DEADLINE_S = 100.0

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("flax", "gymnasium", "matplotlib", "mujoco", "optax")),
    reason="needs agentlace[examples]",
)


@pytest.fixture
def rlpd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return pytest.importorskip("rlpd_demos")


def test_the_expert_reaches_what_chance_does_not(rlpd) -> None:
    shares = {}
    for name in ("noisy_expert", "random_action"):
        player, successes = rlpd.Player(seed=0), []
        while len(successes) < 20:
            transition, by_expert = player.step(getattr(player, name))
            assert not by_expert
            if transition["dones"]:
                successes.append(transition["rewards"] > 0)
                assert (transition["masks"] == 0) == successes[-1]
                player.next_episode()
        shares[name] = np.mean(successes)
    assert shares["noisy_expert"] > 0.8 and shares["random_action"] < 0.4


def test_an_intervention_is_recorded_as_what_was_executed(rlpd) -> None:
    player, marked = rlpd.Player(seed=0, intervene=1.0), []
    while True:
        transition, by_expert = player.step(lambda observation: np.zeros(2, np.float32))
        marked.append(by_expert)
        assert transition["is_intervention"] == by_expert == bool(transition["actions"].any())
        if transition["dones"]:
            break
    assert player.helped and marked == sorted(marked) and 0 < sum(marked) < len(marked)


def test_interventions_have_a_store_of_their_own(rlpd, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rlpd, "MIN_INTERVENTIONS", 20)
    flags = "--max_steps 120 --random_steps 60 --demos 2 --hidden 8 --utd_ratio 1 --intervene"
    for chance in ("0", "1"):
        args = rlpd.parse_args([*flags.split(), chance, "--run_dir", str(tmp_path)])
        run = rlpd.Run(args, seed=0, with_help=True)
        demonstrated = run.transitions()["demo"]
        run.play(threading.Event())
        held = run.transitions()
        assert (held["online"], held["demo"]) == (120, demonstrated)  # none was added to these
        assert held["intervention"] > 20 if chance == "1" else held["intervention"] == 0
        # Half of a batch is the expert's, also before it intervened.
        assert run._batches.sample(32)["is_intervention"][16:].all()


def test_a_short_run_leaves_both_curves(tmp_path: Path) -> None:
    flags = "--seeds 1 --max_steps 300 --random_steps 100 --demos 3 --hidden 16 --utd_ratio 1"
    program = [sys.executable, str(ROOT / "examples" / "rlpd_demos.py"), *flags.split()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ended.returncode in (0, 1), ended.stderr  # 1: it did not learn, as here
    run_dir = tmp_path / "runs" / "rlpd_demos"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary.keys() == {"with demonstrations", "alone"}
    assert all(len(shares) == 1 and 0 <= shares[0] <= 1 for shares in summary.values())
    assert (run_dir / "success.png").read_bytes().startswith(b"\x89PNG")
