"""Nodes of a small system, each in a process of its own, for the dashboard to look at.

``python -m tests.dashboard.nodes ROLE ARGUMENTS``; they run until they are killed.
"""

import math
import os
import sys
import threading
import time

import numpy as np

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    InferenceClient,
    InferenceServer,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.data import QueuedDataStore, ReplayBuffer

TRAINER = TrainerConfig(5555)
ROBOT = ActionConfig(5556, ["move"], ["image"], broadcast_port=5557)
POLICY = 5600
NETWORK_BYTES = 4096
RATE_HZ = 20


def ticks(rate_hz):
    """Yield 0, 1, 2, … at a rate."""
    stop, began = threading.Event(), time.monotonic()
    number = 0
    while True:
        yield number
        number += 1
        stop.wait(max(began + number / rate_hz - time.monotonic(), 0))


def trainer(checkpoint):
    """Take transitions, publish networks, report a loss."""
    with TrainerServer(TRAINER, checkpoint=checkpoint) as server:
        server.register_data_store("arm", ReplayBuffer(100_000))
        server.restore()
        server.start(threaded=True)
        print("ready", flush=True)
        for number in ticks(2):
            server.publish_network({"w": np.full(NETWORK_BYTES // 4, number, np.float32)})
            loss = 2 * math.exp(-number / 60) + 0.1 * math.sin(number)
            server.telemetry.report({"critic_loss": loss, "actor_loss": -loss / 2}, number)


def actors(first, count):
    """Send transitions as several actors, act with the networks, report returns."""
    clients = []
    for number in range(int(first), int(first) + int(count)):
        store = QueuedDataStore(10_000)
        name = f"robot-{number:02}"
        client = TrainerClient("arm", "x", TRAINER, store, wait_for_server=True, actor_id=name)
        client.recv_network_callback(lambda network: None)
        clients.append((number, client, store))
    print("ready", flush=True)
    rate_hz = RATE_HZ if len(clients) < 8 else 2
    paused = {}
    for step in ticks(rate_hz):
        for number, client, store in clients:
            if client.is_paused:
                paused[number] = True
                continue
            store.insert({"observations": np.full(8, step, np.float32), "rewards": 1.0})
            client.update()
            if step % (5 * rate_hz) == 0:
                value = 200 * (1 - math.exp(-step / 600)) + 20 * math.sin(step + number)
                client.telemetry.report({"episode_return": value}, step)


def robot():
    """Serve actions and a policy, and broadcast two cameras."""
    with ActionServer(ROBOT, lambda keys: {}, lambda key, payload: {}) as server:
        with InferenceServer(POLICY) as policy:
            policy.register_interface("act", lambda observation: np.zeros(7))
            policy.start(threaded=True)
            server.start(threaded=True)
            print("ready", flush=True)
            for number in ticks(10):
                images = {"wrist": scene(number), "front": scene(number + 40)}
                server.publish_obs({"image": images})


def scene(number, height=240, width=320):
    """Return a picture of a box that moves over a table."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([90 + 60 * y / height, 100 + 40 * y / height, 120 + 0 * x], -1)
    image[y > 0.55 * height] = (166, 134, 98)
    cx = width * (0.5 + 0.35 * math.sin(number / 15))
    cy = height * (0.68 + 0.12 * math.cos(number / 11))
    image[(abs(x - cx) < 26) & (abs(y - cy) < 20)] = (60, 110, 210)
    image[(abs(x - width * 0.7) ** 2 + abs(y - height * 0.75) ** 2) < 300] = (205, 70, 60)
    arm = (abs(x - cx) < 5) & (y < cy - 22)
    image[arm] = (230, 232, 236)
    return image.astype(np.uint8)


def pilot():
    """Send actions to the robot, and ask the policy."""
    client = ActionClient("x", ROBOT, wait_for_server=True)
    with client, InferenceClient("x", POLICY) as policy:
        print("ready", flush=True)
        for number in ticks(15):
            policy.call("act", np.zeros(8))
            client.act("move", {"x": float(number)})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    globals()[sys.argv[1]](*sys.argv[2:])
