#!/usr/bin/env python3
"""Learning a sparse reward from demonstrations and interventions, as HIL-SERL does.

    python examples/rlpd_demos.py

A MuJoCo arm gets a reward only where it meets its target. The same agent learns twice on each
seed: alone, and with help. Help is an expert's demonstrations, and the expert taking over now and
then: what it then does is what is executed and recorded, marked `is_intervention`, and goes to a
store of its own too. Half of each batch is the expert's, from these two stores. Leaves
`success.png` with both curves in the run directory, and `summary.json`.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from interrupt import run_interruptibly
from reach_env import SparseReach, expert
from report import write_summary
from sac import SACAgent, SACConfig

from agentlace.data import Mixture, RateLimiter
from agentlace.data.demos import load_demos, save_demos
from agentlace.data.jaxrl_data_store import ReplayBufferDataStore

matplotlib.use("Agg")
from matplotlib import pyplot

BATCH_KEYS = ("observations", "actions", "next_observations", "rewards", "masks")
MIN_INTERVENTIONS = 64
"""With fewer, the same few would be in each batch; until then demonstrations take their share."""
EXPERT_NOISE = 0.2
WINDOW_EPISODES, FEWEST_EPISODES = 40, 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="runs with help, and alone [%(default)s]")
    add("--max_steps", type=int, default=4000, help="of each run [%(default)s]")
    add("--demos", type=int, default=40, help="demonstrated episodes [%(default)s]")
    add("--intervene", type=float, default=0.1, help="chance of an episode [%(default)s]")
    add("--random_steps", type=int, default=300, help="of each run, at first [%(default)s]")
    add("--utd_ratio", type=int, default=4, help="updates per step [%(default)s]")
    add("--learning_rate", type=float, default=1e-3, help="[%(default)s]")
    add("--batch_size", type=int, default=128, help="transitions per update [%(default)s]")
    add("--hidden", type=int, nargs="+", default=[128, 128], help="layer widths [128 128]")
    add("--run_dir", type=Path, default=Path("runs/rlpd_demos"), help="[%(default)s]")
    return parser.parse_args(argv)


class Player:
    """Plays episodes; an expert may take over for one that has begun.

    Args:
        seed: of the environment and of everything random.
        intervene: chance that the expert takes over in an episode.
    """

    def __init__(self, seed: int, intervene: float = 0.0) -> None:
        self._env = SparseReach()
        self._rng = np.random.default_rng(seed)
        self._intervene = intervene
        self._observation = self._env.reset(seed=seed)[0]
        self._begin()

    def _begin(self) -> None:
        helped = self._rng.random() < self._intervene
        self._takes_over_at = int(self._rng.integers(25)) if helped else None
        self._step = 0
        self.helped = False

    def step(self, policy: Any) -> tuple[dict[str, Any], bool]:
        """Take one step, and return its transition and whether the expert chose the action."""
        observation = self._observation
        by_expert = self._takes_over_at is not None and self._step >= self._takes_over_at
        self.helped |= by_expert
        action = self.noisy_expert(observation) if by_expert else policy(observation)
        after, reward, terminated, truncated, _ = self._env.step(action)
        self._step, self._observation = self._step + 1, after
        transition = {
            "observations": observation.astype(np.float32),
            "next_observations": after.astype(np.float32),
            "actions": np.asarray(action, np.float32),
            "rewards": np.float32(reward),
            "masks": np.float32(not terminated),
            "dones": terminated or truncated,
            "is_intervention": by_expert,
        }
        return transition, by_expert

    def next_episode(self) -> None:
        """Begin the next episode."""
        self._observation = self._env.reset()[0]
        self._begin()

    def random_action(self, _: np.ndarray) -> np.ndarray:
        """Return any action."""
        return self._rng.uniform(-1, 1, 2).astype(np.float32)

    def noisy_expert(self, observation: np.ndarray) -> np.ndarray:
        """Return nearly what the expert would do, as people do."""
        action = expert(observation) + self._rng.normal(0, EXPERT_NOISE, 2)
        return np.clip(action, -1, 1).astype(np.float32)

    def demonstrate(self, episodes: int) -> list[dict[str, Any]]:
        """Return the transitions of whole episodes by the expert."""
        rows = []
        while episodes:
            rows.append(self.step(self.noisy_expert)[0] | {"is_intervention": True})
            if rows[-1]["dones"]:
                episodes -= 1
                self.next_episode()
        return rows


class Run:
    """One run of one seed, with help or alone.

    Args:
        args: the program's flags.
        seed: of everything.
        with_help: whether there are demonstrations and interventions.
    """

    def __init__(self, args: argparse.Namespace, seed: int, with_help: bool) -> None:
        self._args = args
        self._player = Player(seed, args.intervene if with_help else 0.0)
        spaces = SparseReach().observation_space, SparseReach().action_space
        self._online, self._demos, self._interventions = (
            ReplayBufferDataStore(*spaces, 100_000, seed=seed) for _ in range(3)
        )
        self._batches: Any = self._online
        if with_help:
            path = args.run_dir / f"demos-{seed}.npz"
            save_demos(path, Player(1000 + seed).demonstrate(args.demos))
            load_demos(self._demos, path)
            self._batches = self._mixture()
        # It is the first steps of its own that are waited for.
        self._limiter = RateLimiter(min_size=args.random_steps)
        config = SACConfig(
            2,
            hidden=tuple(args.hidden),
            learning_rate=args.learning_rate,
            tau=0.01,
            num_critics=4,
            subset=2,
            layer_norm=True,
        )
        self._agent = SACAgent.create(seed, np.zeros(spaces[0].shape), config)
        self._key = self._agent.key
        self.successes: list[tuple[int, bool]] = []

    def _mixture(self) -> Mixture:
        """Return batches of which one half is the agent's and one the expert's, from two stores."""
        expert = Mixture(
            {"demo": 0.5, "intervention": 0.5},
            {"demo": self._demos, "intervention": self._interventions},
            min_sizes={"intervention": MIN_INTERVENTIONS},
        )
        return Mixture({"online": 0.5, "expert": 0.5}, {"online": self._online, "expert": expert})

    def play(self, stop: threading.Event) -> None:
        """Take all steps, learning after each, or those until it is stopped."""
        for step in range(1, self._args.max_steps + 1):
            if stop.is_set():
                return
            explore = step <= self._args.random_steps
            policy = self._player.random_action if explore else self._act
            transition, by_expert = self._player.step(policy)
            self._online.insert(transition)
            if by_expert:
                self._interventions.insert(transition)
            if transition["dones"]:
                if not self._player.helped:  # else it is the expert's success
                    self.successes.append((step, bool(transition["rewards"])))
                self._player.next_episode()
            self._learn()

    def _act(self, observation: np.ndarray) -> np.ndarray:
        action, self._key = self._agent.act(observation, self._key)
        return action

    def _learn(self) -> None:
        updates, size = self._args.utd_ratio, self._args.batch_size
        if self._limiter.waits_for(self._online, updates * size) is not None:
            return
        rows = [self._batches.sample(size) for _ in range(updates)]
        batches = {key: np.stack([row[key] for row in rows]) for key in BATCH_KEYS}
        self._agent, _ = self._agent.update(batches)

    def transitions(self) -> dict[str, int]:
        """Return how many there are of each kind; interventions are online too."""
        stores = (self._online, self._demos, self._interventions)
        return dict(zip(("online", "demo", "intervention"), map(len, stores), strict=True))

    def final_success(self) -> float:
        """Return the share of the last episodes that reached the target by themselves."""
        last = [success for _, success in self.successes[-WINDOW_EPISODES:]]
        return float(np.mean(last)) if last else 0.0


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw each run's share of successes over its steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (label, several), colour in zip(runs.items(), ("C0", "C1"), strict=True):
        for i, run in enumerate(run for run in several if run.successes):
            steps, successes = zip(*run.successes, strict=True)
            totals = np.cumsum(np.r_[np.zeros(WINDOW_EPISODES), successes])
            share = (totals[WINDOW_EPISODES:] - totals[:-WINDOW_EPISODES]) / np.minimum(
                np.arange(1, len(steps) + 1), WINDOW_EPISODES
            )
            some = slice(FEWEST_EPISODES - 1, None)  # a share of fewer says nothing
            axes.plot(steps[some], share[some], colour, label=None if i else label, alpha=0.8)
    title = f"Sparse reaching, success of the last {WINDOW_EPISODES} episodes, each seed"
    axes.set(title=title, xlabel="environment steps", ylabel="share", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(args: argparse.Namespace, runs: dict[str, list[Run]], stop: threading.Event) -> int:
    """Make all runs, until stopped; returns 0 if help was one on each seed."""
    for seed in range(args.seeds):
        for label, several in runs.items():
            several.append(Run(args, seed, label != "alone"))
            print(f"seed {seed}, {label}: {args.max_steps} steps", flush=True)
            several[-1].play(stop)
            if stop.is_set():
                return 0
            held = ", ".join(f"{n} {name}" for name, n in several[-1].transitions().items())
            print(f"seed {seed}, {label}: {several[-1].final_success():.2f} ({held})", flush=True)
    draw(runs, args.run_dir / "success.png")
    final = success_of(runs)
    return 0 if all(a > b for a, b in zip(*final.values(), strict=True)) else 1


def success_of(runs: dict[str, list[Run]]) -> dict[str, list[float]]:
    """Return each run's share of successes at its end."""
    return {label: [run.final_success() for run in several] for label, several in runs.items()}


def main() -> int:
    args = parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Run]] = {"with demonstrations": [], "alone": []}
    return run_interruptibly(
        lambda stop: compare(args, runs, stop),
        lambda: write_summary(args.run_dir, success_of(runs)),
    )


if __name__ == "__main__":
    sys.exit(main())
