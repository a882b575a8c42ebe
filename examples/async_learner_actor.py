#!/usr/bin/env python3
"""Soft actor-critic with the actor and the learner in two programs, or in two threads of one.

    python examples/async_learner_actor.py --learner --env Pendulum-v1
    python examples/async_learner_actor.py --actor --env Pendulum-v1 --ip <learner's host>

The actor plays and sends every transition through the broker; the learner makes `--utd_ratio`
updates for each one and sends the policy back. Start them in any order, and several actors if
you like. Both end by themselves: the actor after `--max_steps`, the learner when it has learned
from all that its actors sent. Each leaves `summary.json` in its run directory, the learner also
`returns.csv` and `return.png`. Ctrl-C ends either early, within two seconds (with a `--checkpoint`
once that is saved), a second one at once; a restarted learner goes on from its `--checkpoint`, or
else learns again from what the broker retains.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from interrupt import PATIENCE_S, run_interruptibly
from report import Progress, write_returns, write_summary

STORE = "actor_env"
SAVE_S = 60.0
RLDS_VERSION = "0.1.0"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags; leaves the program where they make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    role = parser.add_argument_group("role (neither: both in this process)")
    role.add_argument("--learner", action="store_true", help="be the learner")
    role.add_argument("--actor", action="store_true", help="be an actor")
    add("--env", default="HalfCheetah-v4", help="Gymnasium environment [%(default)s]")
    add("--ip", default="localhost", help="the broker's host [%(default)s]")
    add("--broker", help="the broker's URL, instead of --ip and AGENTLACE_BROKER")
    add("--render", action="store_true", help="show the actor's environment in a window")
    add("--seed", type=int, default=0, help="of networks, environment and sampling [%(default)s]")
    add("--run_dir", type=Path, help="for the results [runs/<env>-<seed>-<role>]")
    add("--max_steps", type=_count, default=1_000_000, help="actor's steps [%(default)s]")
    add("--random_steps", type=int, default=1000, help="of these, random first [%(default)s]")
    add("--steps_per_update", type=_count, default=50, help=_STEPS_PER_UPDATE)
    add("--max_ahead", type=float, default=200, help=_MAX_AHEAD)
    add("--training_starts", type=_count, default=1000, help="transitions awaited [%(default)s]")
    add("--utd_ratio", type=_count, default=1, help="updates per environment step [%(default)s]")
    add("--batch_size", type=_count, default=256, help="transitions per update [%(default)s]")
    add("--capacity", type=_count, default=1_000_000, help="of the replay buffer [%(default)s]")
    add("--hidden", type=_count, nargs="+", default=[256, 256], help="layer widths [256 256]")
    add("--learning_rate", type=float, default=3e-4, help="[%(default)s]")
    add("--actor_timeout_s", type=float, default=60.0, help=_ACTOR_TIMEOUT)
    add("--checkpoint", type=Path, help=_CHECKPOINT)
    add("--checkpoint_every_s", type=float, default=60.0, help="[%(default)s]")
    add("--use_traj_buffer", action="store_true", help="keep whole trajectories, sampled by row")
    add("--rlds_log_dir", type=Path, help=_RLDS_LOG_DIR)
    args = parser.parse_args(argv)
    args.role = "both" if args.learner == args.actor else "learner" if args.learner else "actor"
    if args.checkpoint and args.role != "learner":
        parser.error("--checkpoint is for a learner of its own (--learner)")
    if args.rlds_log_dir and args.role == "actor":
        parser.error("--rlds_log_dir is for the learner, which has the episodes of all actors")
    args.run_dir = args.run_dir or Path("runs", f"{args.env}-{args.seed}-{args.role}")
    return args


_STEPS_PER_UPDATE = "environment steps between two sends, and between two policies [%(default)s]"
_MAX_AHEAD = (
    "the actor waits while the learner has more environment steps than these to learn from, "
    "so that a slow learner still learns from its own policy; inf for robots that cannot wait "
    "[%(default)s]"
)
_CHECKPOINT = (
    "folder from which a learner that was killed goes on: buffer, agent and counters; saved at an "
    "interval and at the end"
)
_RLDS_LOG_DIR = (
    "folder of datasets: episodes are recorded as RLDS in <name of the environment>/"
    f"{RLDS_VERSION}, by the learner; `agentlace rlds export` does it without its help"
)
_ACTOR_TIMEOUT = "the learner ends when no actor was heard for this long [%(default)s]"


def _count(text: str) -> int:
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def trainer_config() -> Any:
    """Return what both ends agree on."""
    from agentlace.trainer import TrainerConfig

    return TrainerConfig(
        port_number=5588, broadcast_port=5589, request_types=["send-stats", "actor-done"]
    )


def act(args: argparse.Namespace, actor: Any) -> None:
    """Be an actor of a learner elsewhere."""
    from agentlace.data.data_store import QueuedDataStore
    from agentlace.trainer import TrainerClient

    store = QueuedDataStore(50_000)
    client = TrainerClient(
        STORE, args.ip, trainer_config(), store, wait_for_server=True, broker=args.broker
    )
    try:
        actor.run(client, store)
    finally:
        client.stop()


def learn(args: argparse.Namespace, learner: Any, store: Any) -> None:
    """Be the learner of actors elsewhere."""
    from agentlace.trainer import CheckpointPolicy, TrainerServer

    policy = args.checkpoint and CheckpointPolicy(
        args.checkpoint, args.checkpoint_every_s, learner.state
    )
    server = TrainerServer(
        trainer_config(),
        data_callback=lambda *_: learner.wake(),
        request_callback=learner.answer,
        broker=args.broker,
        checkpoint=policy,
    )
    server.register_data_store(STORE, store)
    state = server.restore() if policy else None
    if state is not None:
        learner.restore(state)
    try:
        server.start(threaded=True)
        learner.run(server)
        if policy:
            server.save()
    finally:
        server.stop()


def act_and_learn(actor: Any, learner: Any, store: Any, stop: threading.Event) -> None:
    """Be both, in two threads that share the store."""
    from agentlace.trainer import TrainerSMInterface

    both = TrainerSMInterface()
    both.register_data_store(STORE, store)
    both.register_request_callback(learner.answer)
    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(learner.run, both), pool.submit(actor.run, both, store)]
        if any(thread.exception() for thread in wait(threads, return_when=FIRST_EXCEPTION).done):
            stop.set()
    for thread in threads:
        thread.result()


def run(
    args: argparse.Namespace, progress: Progress, stop: threading.Event, ends: list[Any]
) -> None:
    """Make the ends that the flags ask for, note them in `ends`, and run them."""
    # Only now, so that --help and a mistaken flag do not wait for JAX.
    from actor import Actor, make_env
    from learner import Learner

    if args.role == "actor":
        ends.append(Actor(args, progress, stop))
        return act(args, *ends)
    env = make_env(args, render=False)
    with contextlib.ExitStack() as closing:
        store = make_store(args, env, make_rlds_logger(args, env, closing))
        ends.append(Learner(args, env, store, progress, stop))
        if args.role == "learner":
            return learn(args, *ends, store)
        ends.append(Actor(args, progress, stop))
        return act_and_learn(ends[1], ends[0], store, stop)


def make_rlds_logger(args: argparse.Namespace, env: Any, closing: contextlib.ExitStack) -> Any:
    """Return what records the episodes that arrive, to be closed at the end; None without."""
    if args.rlds_log_dir is None:
        return None
    from agentlace.data.rlds_writer import RLDSWriter

    name = re.sub(r"\W", "_", args.env.rpartition("/")[2]).lower()
    spec = {"observation": env.observation_space, "action": env.action_space}
    writer = RLDSWriter(name, spec, args.rlds_log_dir / name / RLDS_VERSION, RLDS_VERSION)
    closing.callback(writer.close)
    return writer


def make_store(args: argparse.Namespace, env: Any, rlds_logger: Any) -> Any:
    """Return where transitions arrive."""
    from agentlace.data.jaxrl_data_store import (
        ReplayBufferDataStore,
        make_default_trajectory_buffer,
    )

    spaces = env.observation_space, env.action_space
    if args.use_traj_buffer:
        return make_default_trajectory_buffer(
            *spaces, args.capacity, seed=args.seed, rlds_logger=rlds_logger
        )
    return ReplayBufferDataStore(*spaces, args.capacity, seed=args.seed, rlds_logger=rlds_logger)


def conclude(args: argparse.Namespace, ends: list[Any]) -> None:
    """Leave what the run directory is to hold, of a whole run or of the part that there was."""
    summary = {name: value for end in ends for name, value in end.summary().items()}
    write_summary(args.run_dir, {**summary, "role": args.role})
    if ends and args.role != "actor":
        write_returns(args.run_dir, ends[0].curve())
        ends[0].draw(args.run_dir / "return.png")


def main() -> int:
    args = parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    if args.role == "actor":
        # One observation at a time is no work for an accelerator, and the learner wants its memory.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    progress, ends = Progress(), list[Any]()

    def finish() -> None:
        progress.close()
        conclude(args, ends)

    patience_s = SAVE_S if args.checkpoint else PATIENCE_S
    return run_interruptibly(lambda stop: run(args, progress, stop, ends), finish, patience_s)


if __name__ == "__main__":
    sys.exit(main())
