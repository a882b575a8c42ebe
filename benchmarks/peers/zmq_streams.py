"""Transitions over the earlier wire: lists of dicts, two round trips an update.

The trainer's store only keeps the rows, which is less than ours does: it copies them into
arrays from which can be sampled.
"""

import time
from collections import deque

from benchmarks import payloads, worker
from benchmarks.peers.zmq_wire import Caller, answer


def trainer(port, capacity):
    store, last_id = deque(maxlen=capacity), -1

    def handle(request):
        nonlocal last_id
        if request["type"] == "datastore":
            store.extend(request["payload"])
            last_id += len(request["payload"])
        return {"success": True, "last_id": last_id}

    worker.serve_beside(lambda: answer(port, handle))


def actor(port, kind, pool):
    rows, caller = payloads.ROWS[kind](pool), Caller(port)
    store, inserted = deque(maxlen=pool), 0

    def update():
        known = caller.call({"type": "last_id", "store": "replay"})["last_id"]
        new = [store[i] for i in range(len(store) - (inserted - 1 - known), len(store))]
        caller.call({"type": "datastore", "store": "replay", "payload": new})

    def send(n, every):
        nonlocal inserted
        start = time.monotonic_ns()
        for i in range(n):
            store.append(rows[i % pool])
            inserted += 1
            if (i + 1) % every == 0:
                update()
        if n % every:
            update()
        return [start, time.monotonic_ns()]

    worker.serve(send=send)


if __name__ == "__main__":
    worker.main(trainer=trainer, actor=actor)
