"""The inference service: thin devices call a policy that runs elsewhere.

::

    client.py       the calling end
    server.py       the serving end
    policies.py     the part of it that has the policies
    interface.py    a function under a name, and how calls of it are answered
    catalogue.py    a server's interfaces, in versions
    specs.py        what an interface takes and gives
    weights.py      the network that interfaces work with, and following a trainer
    runner.py       interfaces run with that network
    policy.py       which policy made an answer
    engine.py       takes calls and answers them, alone or in batches; what it is made of is in
                    docs/architecture.md
    openpi/         openpi's protocol in front of an interface
"""

from agentlace.codec import ArraySpec
from agentlace.config import InferenceConfig
from agentlace.inference.client import InferenceClient
from agentlace.inference.policy import PolicyAnswer, PolicyVersion
from agentlace.inference.server import InferenceServer
from agentlace.inference.specs import InterfaceSpec

__all__ = [
    "ArraySpec",
    "InferenceClient",
    "InferenceConfig",
    "InferenceServer",
    "InterfaceSpec",
    "PolicyAnswer",
    "PolicyVersion",
]
