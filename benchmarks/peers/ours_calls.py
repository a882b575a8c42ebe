"""Our action and inference services, and their clients."""

import time

from agentlace import ActionClient, ActionConfig, ActionServer, InferenceClient, InferenceServer
from benchmarks import payloads, worker

TIMEOUT_MS = 30_000
"""64 MiB take longer than the default; a deadline does not make a call faster."""


def _config(sizes):
    return ActionConfig(1, ["echo"], [str(size) for size in sizes])


def action_server(sizes):
    def obs(keys):
        return payloads.observation(int(next(iter(keys))))

    server = ActionServer(_config(sizes), obs, lambda key, payload: payload)
    worker.serve_beside(server.start)


def inference_server():
    server, reply = InferenceServer(2), payloads.policy_reply()
    server.register_interface("echo", lambda payload: payload)
    server.register_interface("policy", lambda payload: reply)
    worker.serve_beside(server.start)


def policy_server(cost_ms, number=2, **settings):
    """Serve a policy whose cost is per call, whatever the size of the batch."""
    server = InferenceServer(number)

    def policy(payload):
        time.sleep(cost_ms / 1000)
        return payload

    server.register_interface("echo", policy, **settings)
    worker.serve_beside(server.start)


def action_client(sizes):
    client = ActionClient("localhost", _config(sizes), timeout_ms=TIMEOUT_MS, strict=True)

    def act(kind, size, n):
        payload = payloads.make(kind, size)
        return worker.sample_us(lambda: client.act("echo", payload), n)

    def obs(size, n):
        return worker.sample_us(lambda: client.obs({str(size)}), n)

    worker.serve(act=act, obs=obs)


def inference_client():
    client = InferenceClient("localhost", 2, timeout_ms=TIMEOUT_MS, strict=True)

    def call(kind, size, n, name="echo"):
        payload = payloads.make(kind, size)
        return worker.sample_us(lambda: client.call(name, payload), n)

    worker.serve(call=call)


if __name__ == "__main__":
    worker.main(
        action_server=action_server,
        action_client=action_client,
        inference_server=inference_server,
        inference_client=inference_client,
        policy_server=policy_server,
    )
