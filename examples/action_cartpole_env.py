#!/usr/bin/env python3
"""CartPole in one process, its policy in another, with Gymnasium's API on both sides.

In two terminals, or on two machines that reach one broker:

    python examples/action_cartpole_env.py --server
    python examples/action_cartpole_env.py --client
"""

import argparse
import json
import time

import gymnasium

from agentlace.gym_env import GymEnvClient, GymEnvServerWrapper


def balance(observation):
    """Push towards the side to which the pole falls: enough for some hundred steps."""
    _, _, angle, angular_velocity = observation
    return int(angle + 0.3 * angular_velocity > 0)


def run(env, episodes, seed):
    returns, steps, start = [], 0, time.monotonic()
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(balance(observation))
            total, steps, done = total + reward, steps + 1, terminated or truncated
        returns.append(total)
        print(f"episode {episode + 1}: return {total:.0f}", flush=True)
    rate = steps / (time.monotonic() - start)
    print(json.dumps({"returns": returns, "steps": steps, "steps_per_s": round(rate)}))


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
        env = GymEnvClient(args.ip, args.port, broker=args.broker)
        try:
            run(env, args.episodes, args.seed)
        except KeyboardInterrupt:
            pass
        finally:
            env.close()
        return
    env = gymnasium.make("CartPole-v1", render_mode=args.render_mode)
    if not args.server:
        run(env, args.episodes, args.seed)
        env.close()
        return
    server = GymEnvServerWrapper(env, args.port, broker=args.broker)
    try:
        print("serving CartPole-v1; Ctrl-C ends it", flush=True)
        server.start()
    except KeyboardInterrupt:
        server.stop()
    env.close()


if __name__ == "__main__":
    main()
