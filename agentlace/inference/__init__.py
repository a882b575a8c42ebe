"""The inference service: thin devices call a policy that runs elsewhere."""

from agentlace.config import InferenceConfig
from agentlace.inference.client import InferenceClient
from agentlace.inference.server import InferenceServer

__all__ = ["InferenceClient", "InferenceConfig", "InferenceServer"]
