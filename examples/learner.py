"""The learner: it updates the agent as fast as transitions arrive, and publishes the policy."""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import flax.serialization
import gymnasium as gym
import matplotlib
import numpy as np
from actor import make_agent
from report import Progress, Rate, final_return

matplotlib.use("Agg")
# Here, not where it draws: this takes a second, which an interrupted learner does not have.
from matplotlib import pyplot

UPDATES_PER_CALL = 64
WAIT_SLICE_S = 0.5
BATCH_KEYS = ("observations", "actions", "next_observations", "rewards", "masks")


class Roster:
    """What the actors told: written by the server's threads, read by the learner's.

    Attributes:
        changed: Notified whenever there may be news.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._episodes: dict[tuple[str, int], float] = {}
        self._active: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._received, self._received_at = 0, time.monotonic()

    def note(self, kind: str, report: dict[str, Any]) -> None:
        """Take in one report of one actor."""
        actor = report["actor"]
        with self.changed:
            # A report whose answer got lost comes twice: the key keeps it once.
            self._episodes.update({(actor, step): value for step, value in report["episodes"]})
            self._active[actor] = time.monotonic()
            if kind == "actor-done":
                del self._active[actor]
                self._done[actor] = report["steps"]
            self.changed.notify_all()

    def state(self) -> dict[str, Any]:
        """Return what a restarted learner must know of its actors."""
        with self.changed:
            episodes = [[actor, step, value] for (actor, step), value in self._episodes.items()]
            return {"episodes": episodes, "active": list(self._active), "done": dict(self._done)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` returned; who was active then has its time from now on."""
        with self.changed:
            self._episodes = {(actor, step): value for actor, step, value in state["episodes"]}
            self._active = dict.fromkeys(state["active"], time.monotonic())
            self._done = state["done"]

    def curve(self) -> list[tuple[int, float]]:
        """Return (step of its actor, return) of all episodes so far, in order of the steps."""
        with self.changed:
            return sorted((step, value) for (_, step), value in self._episodes.items())

    def is_over(self, received: int, gone_s: float) -> bool:
        """Return whether all that was announced is here, or nothing came for `gone_s`."""
        with self.changed:
            if received != self._received:
                self._received, self._received_at = received, time.monotonic()
            if not (received or self._active or self._done):
                return False
            silent_s = time.monotonic() - max(self._received_at, *self._active.values(), 0)
            complete = not self._active and 0 < sum(self._done.values()) <= received
            return complete or silent_s > gone_s


class Learner:
    """Makes `--utd_ratio` updates per environment step that arrives, and publishes the policy.

    Args:
        args: The program's flags.
        env: The environment, of which only the spaces count.
        store: Where transitions arrive.
        progress: Where to show the present state.
        stop: Ends the run early.
    """

    def __init__(
        self,
        args: Namespace,
        env: gym.Env,
        store: Any,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._args, self._env, self._store = args, env, store
        self._progress, self._stop = progress, stop
        self._roster = Roster()
        # Environment steps that one call of the compiled update learns from.
        self._block = max(1, min(args.steps_per_update, UPDATES_PER_CALL // args.utd_ratio))
        self._agent = make_agent(args, env)
        self._learned = self._published = 0
        self._losses: dict[str, Any] = {}
        self._version: int | None = None
        self._step_rate, self._update_rate = Rate(), Rate()
        self._started = time.monotonic()

    def answer(self, kind: str, report: dict[str, Any]) -> dict[str, Any]:
        """Answer an actor's report with the number of steps that wait to be learned from."""
        self._roster.note(kind, report)
        return {"behind": self._backlog()}

    def wake(self) -> None:
        """Look at the store now, not only at the next turn."""
        with self._roster.changed:
            self._roster.changed.notify_all()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the buffer; in any thread."""
        # The counter first: were it the newer one, updates would be left out after a restart.
        learned, agent = self._learned, self._agent
        state = flax.serialization.to_state_dict(agent)
        return {"agent": state, "learned": learned, "actors": self._roster.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` returned, in an earlier process."""
        self._agent = flax.serialization.from_state_dict(self._agent, state["agent"])
        self._learned = self._published = state["learned"]
        self._roster.restore(state["actors"])
        self._progress.show("learner", f"goes on after {self._learned:,} steps")

    def run(self, server: Any) -> None:
        """Learn from what arrives until the actors are done, or stopped."""
        self._publish(server)
        while not self._stop.is_set():
            if self._backlog():
                self._learn()
                if self._learned - self._published >= self._args.steps_per_update:
                    self._publish(server)
            elif self._roster.is_over(self._received(), self._args.actor_timeout_s):
                break
            else:
                with self._roster.changed:
                    self._roster.changed.wait(WAIT_SLICE_S)
            self._progress.show("learner", self._state())
        if self._learned > self._published:
            self._publish(server)

    def _received(self) -> int:
        """Return the transitions that ever arrived; the oldest may have left the store since."""
        return self._store.latest_data_id() + 1

    def _backlog(self) -> int:
        """Return the steps, in whole blocks, that wait to be learned from; none at the start."""
        received = self._received()
        if received < self._args.training_starts:
            return 0
        return (received - self._learned) // self._block * self._block

    def _learn(self) -> None:
        """Make the updates that one block of environment steps pays for."""
        updates = self._block * self._args.utd_ratio
        rows = self._sample(updates * self._args.batch_size)
        batches = {
            key: np.asarray(rows[key], np.float32).reshape(
                updates, self._args.batch_size, *rows[key].shape[1:]
            )
            for key in BATCH_KEYS
        }
        self._agent, self._losses = self._agent.update(batches)
        self._learned += self._block

    def _sample(self, size: int) -> dict[str, Any]:
        if self._args.use_traj_buffer:
            return self._store.sample("training", size)[0]
        return self._store.sample(size)

    def _publish(self, server: Any) -> None:
        server.publish_network(self._agent.params)
        self._version, self._published = server.published_version, self._learned
        mean = final_return([value for _, value in self.curve()])
        returns = {} if mean is None else {"episode_return": mean}
        server.telemetry.report({**self._losses, **returns}, step=self._learned)

    def _state(self) -> str:
        received, updates = self._received(), self._updates()
        if received < self._args.training_starts:
            return f"waiting for transitions, {received:,} of {self._args.training_starts:,}"
        mean = final_return([value for _, value in self.curve()])
        return (
            f"step {received:,} · {self._step_rate(received):,.0f} steps/s"
            f" · {updates:,} updates · {self._update_rate(updates):,.0f} updates/s"
            f" · return {'-' if mean is None else mean}"
            f" · policy {self._version} · buffer {len(self._store):,}"
            + ("" if self._backlog() else " · waiting for transitions")
        )

    def _updates(self) -> int:
        return self._learned * self._args.utd_ratio

    def curve(self) -> list[tuple[int, float]]:
        """Return (environment step at its end, return) of all episodes so far."""
        return self._roster.curve()

    def draw(self, path: Path) -> None:
        """Draw each episode's return over the environment step at which it ended."""
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        if curve := self.curve():
            axes.plot(*zip(*curve, strict=True), marker=".")
        title = f"SAC on {self._args.env}, seed {self._args.seed}"
        axes.set(title=title, xlabel="environment steps", ylabel="episode return")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)
        pyplot.close(figure)

    def summary(self) -> dict[str, Any]:
        """Return what is left of the run, at any time."""
        curve = self.curve()
        return {
            "role": "learner",
            "env": self._args.env,
            "seed": self._args.seed,
            "steps": self._received(),
            "updates": self._updates(),
            "episodes": len(curve),
            "final_return": final_return([value for _, value in curve]),
            "policy_version": self._version,
            "wall_s": round(time.monotonic() - self._started, 1),
        }
