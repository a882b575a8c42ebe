#!/usr/bin/env python3
"""One policy server for several robots: a Flax policy, batched, that follows a trainer.

    python examples/inference_server.py

Starts a policy server, a trainer that publishes a network every second (a stand-in: it learns
nothing), and three clients, each a process of its own. The server stacks the calls that wait,
fills them up to a size that JAX has compiled already, and works with the newest network; each
answer says which one that was. Ends with what the clients saw, also as `summary.json`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from report import write_summary

from agentlace import ArraySpec, InferenceClient, InferenceServer, TrainerConfig, TrainerServer

PORT, TRAINER_PORT = 5620, 5621
STATE, ACTION, CHUNK = 32, 7, 16
WIDTHS = (256, 256, CHUNK * ACTION)
BUCKETS = (1, 2, 4, 8)
INPUTS = {"state": ArraySpec((STATE,), "float32")}
OUTPUTS = {"actions": ArraySpec((CHUNK, ACTION), "float32")}
CONNECT_S = 60.0
GOODBYE_S = 1.5
POLL_S = 0.1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    roles = parser.add_mutually_exclusive_group()
    roles.add_argument("--server", action="store_true", help="only serve, until Ctrl-C")
    roles.add_argument("--trainer", action="store_true", help="only publish, until Ctrl-C")
    roles.add_argument("--client", action="store_true", help="only be one client")
    add("--ip", default="localhost", help="the broker's host, for a client [%(default)s]")
    add("--clients", type=int, default=3, help="[%(default)s]")
    add("--seconds", type=float, default=5.0, help="how long clients call [%(default)s]")
    add("--max_wait_ms", type=float, default=2.0, help="for a batch to fill [%(default)s]")
    add("--run_dir", type=Path, default=Path("runs/inference_server"), help="[%(default)s]")
    return parser.parse_args(argv)


def make_policy() -> tuple[Any, Any]:
    """Return a policy's jitted function, of parameters and states (n, STATE), and parameters."""
    import flax.linen as nn
    import jax

    class Policy(nn.Module):
        @nn.compact
        def __call__(self, states: jax.Array) -> jax.Array:
            values = states
            for width in WIDTHS:
                values = nn.tanh(nn.Dense(width)(values))
            return values.reshape(-1, CHUNK, ACTION)

    policy = Policy()
    params = policy.init(jax.random.PRNGKey(0), np.zeros((1, STATE), np.float32))
    return jax.jit(policy.apply), params


def stop_on_signals() -> threading.Event:
    """Return an event that Ctrl-C or SIGTERM sets."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def serve(args: argparse.Namespace) -> None:
    """Serve the policy until Ctrl-C or SIGTERM; prints how large the batches were."""
    import jax

    apply, params = make_policy()
    sizes: Counter[int] = Counter()

    def act(observations: dict[str, np.ndarray], params: Any) -> dict[str, np.ndarray]:
        sizes[len(observations["state"])] += 1
        return {"actions": np.asarray(apply(params, observations["state"]))}

    for size in BUCKETS:  # now, and not during somebody's first call
        act({"state": np.zeros((size, STATE), np.float32)}, params)
    sizes.clear()
    stop = stop_on_signals()
    with InferenceServer(
        PORT,
        follow_weights=TRAINER_PORT,
        weights=params,
        prepare_weights=jax.device_put,
    ) as server:
        server.register_interface(
            "policy",
            act,
            batch=True,
            max_batch=BUCKETS[-1],
            max_wait_ms=args.max_wait_ms,
            pad_to=BUCKETS,
            idempotent=True,
            uses_weights=True,
            inputs=INPUTS,
            outputs=OUTPUTS,
        )
        server.start(threaded=True)
        print(f"serving the policy, compiled for batches of {BUCKETS}", flush=True)
        stop.wait()
    print(json.dumps({str(size): sizes[size] for size in BUCKETS}), flush=True)


def make_network(random: np.random.Generator) -> dict[str, Any]:
    """Return parameters of the policy, as a learner would."""
    layers = {}
    for number, shape in enumerate(zip((STATE, *WIDTHS), WIDTHS, strict=False)):
        kernel = random.standard_normal(shape, np.float32) / np.float32(shape[0]) ** 0.5
        layers[f"Dense_{number}"] = {"kernel": kernel, "bias": np.zeros(shape[1], np.float32)}
    return {"params": layers}


def train(args: argparse.Namespace) -> None:
    """Publish a network every second, until Ctrl-C or SIGTERM."""
    random = np.random.default_rng()
    stop = stop_on_signals()
    with TrainerServer(TrainerConfig(TRAINER_PORT)) as trainer:
        trainer.start(threaded=True)
        print("publishing a network every second", flush=True)
        trainer.publish_network(make_network(random))
        while not stop.wait(1.0):
            trainer.publish_network(make_network(random))


def call(args: argparse.Namespace) -> dict[str, Any]:
    """Be one client: call again and again, until Ctrl-C at most; returns what it saw."""
    stop = stop_on_signals()
    random = np.random.default_rng()
    latencies_ms: list[float] = []
    networks: Counter[str] = Counter()
    failed = 0
    with InferenceClient(args.ip, PORT, timeout_ms=2000) as client:
        await_policy(client, stop)
        end = time.monotonic() + args.seconds
        while (begin := time.monotonic()) < end and not stop.is_set():
            observation = {"state": random.standard_normal(STATE, np.float32)}
            answer = client.call("policy", observation, full=True)
            if answer is None:
                failed += 1
                continue
            latencies_ms.append(1000 * (time.monotonic() - begin))
            networks[str(answer.policy)] += 1
    p50, p95 = np.percentile(latencies_ms, [50, 95]).round(2).tolist() if latencies_ms else (0, 0)
    return {
        "calls": len(latencies_ms),
        "failed": failed,
        "p50_ms": p50,
        "p95_ms": p95,
        "policies": networks,
    }


def await_policy(client: InferenceClient, stop: threading.Event) -> None:
    """Wait for the policy server; gives up after CONNECT_S, and says why."""
    deadline = time.monotonic() + CONNECT_S
    while not stop.is_set() and "policy" not in client.interfaces():
        if time.monotonic() > deadline:
            raise SystemExit(f"no policy server within {CONNECT_S:g} s: {client.last_error}")
        stop.wait(0.2)


class Children:
    """The processes of a run; none outlives it. They get no Ctrl-C from the terminal."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []

    def start(self, role: str, args: argparse.Namespace) -> subprocess.Popen[str]:
        """Start this program in a role."""
        flags = ["--ip", args.ip, "--seconds", args.seconds, "--max_wait_ms", args.max_wait_ms]
        command = [sys.executable, __file__, f"--{role}", *map(str, flags)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._children.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: Any) -> None:
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + GOODBYE_S
        for child in self._children:
            try:
                child.communicate(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()


def last_line(child: subprocess.Popen[str], role: str, was_cut: bool) -> dict[str, Any]:
    """Return what a child's last line says, once it has ended; nothing if it had not begun."""
    lines = child.communicate()[0].splitlines()
    if child.returncode or not lines:
        if was_cut:
            return {}
        raise SystemExit(f"the {role} ended unexpectedly, with code {child.returncode}")
    return json.loads(lines[-1])


def run(args: argparse.Namespace) -> tuple[dict[str, Any], float, bool]:
    """Start everything, wait for the clients.

    Returns:
        What they and the server saw, in how many seconds, and whether Ctrl-C cut it short.
    """
    with Children() as children:
        children.start("trainer", args)
        server = children.start("server", args)
        print("waiting for the policy to be compiled", flush=True)
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server ended unexpectedly")
        print(line, end="", flush=True)
        stop, began = stop_on_signals(), time.monotonic()
        clients = [children.start("client", args) for _ in range(args.clients)]
        while any(client.poll() is None for client in clients) and not stop.wait(POLL_S):
            pass
        seconds = time.monotonic() - began
        for client in clients if stop.is_set() else ():
            client.terminate()
        seen = [last_line(client, "client", stop.is_set()) for client in clients]
        server.terminate()
        batches = last_line(server, "server", stop.is_set())
    found = {"clients": [client for client in seen if client], "batches": batches}
    return found, seconds if stop.is_set() else args.seconds, stop.is_set()


def show(found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Print a summary for people; returns one for `summary.json`."""
    policies: Counter[str] = Counter()
    for number, seen in enumerate(found["clients"], 1):
        policies.update(seen["policies"])
        print(
            f"client {number}: {seen['calls']} calls, {seen['failed']} failed, "
            f"half within {seen['p50_ms']} ms, 95 % within {seen['p95_ms']} ms"
        )
    calls = sum(policies.values())
    print(f"together: {calls / seconds:.0f} calls per second")
    filled = ", ".join(f"{n} of {size}" for size, n in found["batches"].items() if n)
    print(f"batches: {filled}")
    print("answers of: " + ", ".join(f"{name} ({n})" for name, n in sorted(policies.items())))
    return {**found, "calls_per_s": round(calls / seconds, 1), "policies": policies}


def main(argv: list[str] | None = None) -> None:
    """Run one role, or all of them."""
    args = parse_args(argv)
    if args.server:
        serve(args)
    elif args.trainer:
        train(args)
    elif args.client:
        print(json.dumps(call(args)), flush=True)
    else:
        args.run_dir.mkdir(parents=True, exist_ok=True)
        found, seconds, was_cut = run(args)
        write_summary(args.run_dir, show(found, seconds))
        if was_cut:
            sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
