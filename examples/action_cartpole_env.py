#!/usr/bin/env python3
"""CartPole in one process, its policy in another, with Gymnasium's API on both sides.

In two terminals, or on two machines that reach one broker:

    python examples/action_cartpole_env.py --server
    python examples/action_cartpole_env.py --client
"""

import argparse
import json
import sys
import time

import gymnasium

from agentlace.gym_env import GymEnvClient, GymEnvServerWrapper

INTERRUPTED = 130


def balance(observation):
    """Push towards the side to which the pole falls: enough for some hundred steps."""
    _, _, angle, angular_velocity = observation
    return int(angle + 0.3 * angular_velocity > 0)


def run(env, episodes, seed):
    returns, steps, start, status = [], 0, time.monotonic(), 0
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, done = 0.0, False
            while not done:
                observation, reward, terminated, truncated, _ = env.step(balance(observation))
                total, steps, done = total + reward, steps + 1, terminated or truncated
            returns.append(total)
            print(f"episode {episode + 1}: return {total:.0f}", flush=True)
    except KeyboardInterrupt:
        status = INTERRUPTED
    rate = steps / (time.monotonic() - start)
    print(json.dumps({"returns": returns, "steps": steps, "steps_per_s": round(rate)}))
    return status


class Counted(gymnasium.Wrapper):
    """Counts the steps, for the summary."""

    steps = 0

    def step(self, action):
        self.steps += 1
        return super().step(action)


def serve(env, args):
    with GymEnvServerWrapper(env, args.port, broker=args.broker) as server:
        try:
            print("serving CartPole-v1; Ctrl-C ends it", flush=True)
            server.start()
        except KeyboardInterrupt:
            pass
    print(json.dumps({"served_steps": env.steps}))
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--server", action="store_true", help="serve the environment")
    role.add_argument("--client", action="store_true", help="act in a served environment")
    parser.add_argument("--ip", default="localhost", help="the broker's host")
    parser.add_argument("--port", type=int, default=5546, help="number of the service")
    parser.add_argument("--broker", help="the broker's address; default AGENTLACE_BROKER or --ip")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--render_mode", default=None, help="of the environment, such as human")
    args = parser.parse_args()

    if args.client:
        with GymEnvClient(args.ip, args.port, broker=args.broker) as env:
            return run(env, args.episodes, args.seed)
    with gymnasium.make("CartPole-v1", render_mode=args.render_mode) as env:
        if args.server:
            return serve(Counted(env), args)
        return run(env, args.episodes, args.seed)


if __name__ == "__main__":
    sys.exit(main())
