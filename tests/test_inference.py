"""A program of the inference service as it was written for the earlier library.

Runs under pytest and as a script, which needs no broker: python tests/test_inference.py
"""

import pytest

from agentlace.inference import InferenceClient, InferenceServer

pytestmark = pytest.mark.usefixtures("broker_environment")


def greet(payload):
    name = payload.get("name")
    return {"message": f"Hello, {name}!"} if name else {"message": "who is there?"}


def test_inference():
    server = InferenceServer(12345)
    server.register_interface("echo", lambda payload: {"message": payload})
    server.register_interface("greet", greet)
    server.start(threaded=True)
    client = InferenceClient("localhost", 12345)

    assert client.interfaces() == {"echo", "greet"}
    assert client.call("echo", {"a": [1, 2.5]}) == {"message": {"a": [1, 2.5]}}
    assert client.call("greet", {"name": "Ada"}) == {"message": "Hello, Ada!"}
    assert client.call("greet", {}) == {"message": "who is there?"}
    unknown = client.call("sing", {})
    assert unknown["success"] is False and "sing" in unknown["message"]
    client.stop()
    server.stop()


if __name__ == "__main__":
    test_inference()
    print("[test_inference] passed")
