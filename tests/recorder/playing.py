"""An actor as a program that tests kill around, and the episodes that it plays.

What it plays follows from its number and the episode's, so that a test knows it too.
"""

import sys
import threading

import numpy as np

from agentlace import TrainerClient, TrainerConfig
from agentlace.codec.mark import HOWS
from agentlace.data import QueuedDataStore

CONFIG = TrainerConfig(port_number=5571)
STORE = "env"
PAUSE_S = 0.01


def how_it_ends(actor, episode):
    return HOWS[(actor + episode) % 3]


def transitions(actor, episode):
    """Return the transitions of one episode; only those of odd actors tell that it ends."""
    rng = np.random.default_rng([actor, episode])
    length = int(rng.integers(1, 12))
    seen = [
        {
            "camera": rng.integers(0, 256, (8, 8, 3), np.uint8),
            "state": rng.normal(size=3).astype(np.float32),
        }
        for _ in range(length + 1)
    ]
    how = how_it_ends(actor, episode)
    rows = []
    for n in range(length):
        ends = n == length - 1
        rows.append(
            {
                "observations": seen[n],
                "next_observations": seen[n + 1],
                "actions": rng.normal(size=2).astype(np.float32),
                "rewards": np.float32(rng.normal()),
                "masks": np.float32(not (ends and how == "terminated")),
                "number": np.int64([actor, episode, n]),
                **({"dones": ends} if actor % 2 else {}),
            }
        )
    return rows


def play(actor, per_episode_s):
    """Play until a line comes in; even actors mark their episodes, odd ones do not."""
    queue = QueuedDataStore(100_000)
    client = TrainerClient(
        f"actor{actor}", "localhost", CONFIG, data_stores={STORE: queue}, wait_for_server=True
    )
    told, pause = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
    episode = 0
    while not told.is_set():
        if actor % 2 == 0:
            client.begin_episode({"number": episode})
        for n, row in enumerate(transitions(actor, episode)):
            queue.insert(row)
            if n % 4 == actor % 4:
                client.update()
        if actor % 2 == 0:
            client.end_episode(how_it_ends(actor, episode))
        client.update()
        episode += 1
        if episode == 1:
            print("playing", flush=True)
        pause.wait(per_episode_s)
    while not client.update():
        pause.wait(PAUSE_S)
    print(f"played {episode} lost {client.lost}", flush=True)
    sys.stdin.read()  # stay until told to go
    client.stop()


def main():
    play(int(sys.argv[1]), float(sys.argv[2]))
