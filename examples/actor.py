"""The actor: it plays the environment, sends every transition and keeps pace with the learner."""

from __future__ import annotations

import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from report import Progress, Rate, final_return
from sac import SACAgent, SACConfig

GOODBYE_S = 30.0


def make_env(args: Namespace, render: bool) -> gym.Env:
    """Return the environment that the flags name, with actions in [-1, 1].

    Raises:
        SystemExit: Its spaces are not flat boxes, which this example's SAC needs.
    """
    env = gym.make(args.env, render_mode="human" if render else None)
    spaces = (env.observation_space, env.action_space)
    if not all(isinstance(space, gym.spaces.Box) and len(space.shape) == 1 for space in spaces):
        raise SystemExit(f"{args.env}: SAC needs flat Box spaces, got {spaces[0]}, {spaces[1]}")
    bound = np.ones(env.action_space.shape, np.float32)
    return gym.wrappers.RescaleAction(env, -bound, bound)


def make_agent(args: Namespace, env: gym.Env) -> SACAgent:
    """Return the agent that both ends start from."""
    config = SACConfig(
        action_dim=env.action_space.shape[0],
        hidden=tuple(args.hidden),
        learning_rate=args.learning_rate,
    )
    return SACAgent.create(args.seed, env.observation_space.sample(), config)


class Policy:
    """The newest policy: written by the network callback's thread, read by the actor's."""

    def __init__(self, agent: SACAgent, seed: int) -> None:
        self._agent = agent
        self._key = jax.random.PRNGKey(seed)
        self._changed = threading.Condition()

    def receive(self, params: Any) -> None:
        """Take over parameters that arrived: a tree of numpy arrays."""
        agent = self._agent.replace(params=jax.device_put(params))
        with self._changed:
            self._agent = agent
            self._changed.notify_all()

    def wait_for_next(self, timeout_s: float) -> None:
        """Return when another policy arrives, or after `timeout_s`."""
        with self._changed:
            self._changed.wait(timeout_s)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Return an action (A,) to explore with."""
        action, self._key = self._agent.act(observation, self._key)
        return action


class Actor:
    """Plays `--max_steps` steps and reports to the learner.

    Args:
        args: The program's flags.
        progress: Where to show the present state.
        stop: Ends the run early.
    """

    def __init__(self, args: Namespace, progress: Progress, stop: threading.Event) -> None:
        self._args, self._progress, self._stop = args, progress, stop
        self._id = uuid.uuid4().hex
        self._steps = 0
        self._returns: list[float] = []
        self._unreported: list[tuple[int, float]] = []
        self._client: Any = None
        self._rate = Rate()
        self._behind, self._answered_at = 0, (0, time.monotonic())
        self._started = time.monotonic()

    def run(self, client: Any, store: Any) -> None:
        """Play until done or stopped; transitions go into `store`, which `client` sends from."""
        env = make_env(self._args, self._args.render)
        policy = Policy(make_agent(self._args, env), self._args.seed)
        self._client = client
        client.recv_network_callback(policy.receive)
        for transition in self._play(env, policy):
            store.insert(transition)
            if self._steps % self._args.steps_per_update == 0:
                client.update()
                self._keep_pace(policy)
        client.update()
        if not self._stop.is_set():
            self._say_goodbye()
        env.close()

    def _play(self, env: gym.Env, policy: Policy) -> Iterator[dict[str, Any]]:
        """Yield one transition per step, episode after episode."""
        env.action_space.seed(self._args.seed)
        observation, total = env.reset(seed=self._args.seed)[0], 0.0
        while self._steps < self._args.max_steps and not self._stop.is_set():
            explore = self._steps < self._args.random_steps
            action = env.action_space.sample() if explore else policy(observation)
            after, reward, terminated, truncated, _ = env.step(action)
            total, self._steps = total + float(reward), self._steps + 1
            transition = {
                "observations": observation,
                "next_observations": after,
                "actions": action,
                "rewards": np.float32(reward),
                # A time limit says nothing about the future: only termination ends its value.
                "masks": np.float32(not terminated),
                "dones": terminated or truncated,
            }
            if terminated or truncated:
                self._returns.append(total)
                self._unreported.append((self._steps, total))
                self._client.telemetry.report({"episode_return": total}, step=self._steps)
                after, total = env.reset()[0], 0.0
            observation = after
            yield transition

    def _keep_pace(self, policy: Policy) -> None:
        """Report, and wait while the learner is more than `--max_ahead` steps behind."""
        limit = self._args.max_ahead
        if limit != float("inf") or self._unreported:
            self._report("send-stats")
        self._progress.show("actor", self._state())
        while self._ahead() > limit and not self._stop.is_set():
            self._progress.show("actor", f"{self._state()} · {self._waits_for()}")
            policy.wait_for_next(timeout_s=0.5)
            self._client.update()
            self._report("send-stats")

    def _report(self, kind: str) -> bool:
        """Tell the learner what happened; return whether it answered."""
        news = len(self._unreported)
        message = {"actor": self._id, "steps": self._steps, "episodes": list(self._unreported)}
        answer = self._client.request(kind, message)
        if not answer:
            return False
        # Only what was answered is forgotten: a learner that restarts still gets the rest.
        del self._unreported[:news]
        self._behind, self._answered_at = answer["behind"], (self._steps, time.monotonic())
        return True

    def _ahead(self) -> int:
        """Steps that the learner still has to learn from; unanswered ones count as not learned."""
        return self._behind + self._steps - self._answered_at[0]

    def _waits_for(self) -> str:
        silence_s = time.monotonic() - self._answered_at[1]
        if silence_s > 2.0:
            return f"waiting for the learner's answer, {silence_s:.0f} s so far"
        return f"waiting for the learner, {self._ahead():,} steps behind"

    def _say_goodbye(self) -> None:
        """Send the rest and tell the learner; try again while it is away, but not for ever."""
        deadline = time.monotonic() + GOODBYE_S
        while not self._report("actor-done"):
            if time.monotonic() > deadline or self._stop.wait(0.5):
                return
            self._progress.show("actor", f"done, {self._waits_for()}")
            self._client.update()

    def _state(self) -> str:
        mean, client = final_return(self._returns), self._client
        age = "" if client.policy_age_s is None else f", {client.policy_age_s:.1f} s old"
        return (
            f"step {self._steps:,} of {self._args.max_steps:,}"
            f" · {self._rate(self._steps):,.0f} steps/s"
            f" · return {'-' if mean is None else mean}"
            f" · policy {client.policy_version or '-'}{age}"
        )

    def summary(self) -> dict[str, Any]:
        """Return what is left of the run, at any time."""
        return {
            "role": "actor",
            "env": self._args.env,
            "seed": self._args.seed,
            "steps": self._steps,
            "episodes": len(self._returns),
            "final_return": final_return(self._returns),
            "policy_version": self._client.policy_version if self._client else None,
            "wall_s": round(time.monotonic() - self._started, 1),
        }
