"""Calls of a Ray actor in a process of its own, on a Ray instance that goes with this program."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from benchmarks import payloads, worker

TIMEOUT_S = 60.0
OBJECT_STORE_BYTES = 256 << 20


@ray.remote
class Policy:
    def __init__(self):
        self._reply = payloads.policy_reply()

    def echo(self, payload):
        return payload

    def policy(self, payload):
        return self._reply


def client():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        configure_logging=False,
        log_to_driver=False,
    )
    remote = Policy.remote()
    ray.get(remote.policy.remote(None), timeout=TIMEOUT_S)

    def call(kind, size, n, name="echo"):
        payload, method = payloads.make(kind, size), getattr(remote, name)
        return worker.sample_us(lambda: ray.get(method.remote(payload), timeout=TIMEOUT_S), n)

    try:
        worker.serve(call=call)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    worker.main(client=client)
