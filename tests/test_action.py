"""A program of the action service as it was written for the earlier library.

Runs under pytest and as a script, which needs no broker: python tests/test_action.py
"""

import threading

import numpy as np
import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer

pytestmark = pytest.mark.usefixtures("broker_environment")


def test_action():
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    config = ActionConfig(
        port_number=5588, action_keys=["show"], observation_keys=["camera"], broadcast_port=5589
    )

    def observe(keys):
        assert keys == {"camera"}
        return {"status": "success", "camera": picture}

    def act(key, payload):
        return {"status": "success", "pixel": payload["picture"][0, 0]}

    server = ActionServer(config, observe, act)
    server.start(threaded=True)
    client = ActionClient("127.0.0.1", config)
    received, arrived = [], threading.Event()

    def on_obs(obs):
        received.append(obs)
        arrived.set()

    client.register_obs_callback(on_obs)
    assert np.array_equal(client.obs()["camera"], picture)
    reply = client.act("show", {"picture": picture})
    assert reply["status"] == "success" and np.array_equal(reply["pixel"], picture[0, 0])

    assert server.publish_obs({"height": 256})
    assert arrived.wait(5) and received == [{"height": 256}]
    client.stop()
    server.stop()


if __name__ == "__main__":
    test_action()
    print("[test_action] passed")
