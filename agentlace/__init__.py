"""agentlace: the nodes of a distributed agent, connected through a Redis broker.

::

    action/  inference/  trainer/  gym_env.py        the services, each with both ends
    recorder/                                        streams recorded as RLDS episodes
    vector_env.py  robot/                            what is built on them
    service/                                         what servers and clients have in common
    data/                                            stores of transitions
    rlds/                                            datasets of episodes on disk
    transport/                                       traffic through the broker
    codec/                                           trees of arrays ⇄ frames of bytes
    config.py  errors.py                             settings, and everything that can be raised

Imports point one way: services → data, transport → rlds, codec → errors.
"""

from importlib import import_module
from typing import Any

from agentlace import data
from agentlace._version import __version__
from agentlace.action import ActionClient, ActionServer
from agentlace.codec import ArraySpec
from agentlace.config import ActionConfig, BrokerURL, InferenceConfig, TrainerConfig
from agentlace.errors import (
    ActorReplaced,
    AgentlaceError,
    AlreadyServed,
    BrokerAuthFailed,
    BrokerUnreachable,
    Busy,
    CheckpointError,
    Closed,
    ConfigMismatch,
    ControlHeld,
    DecodeError,
    EncodeError,
    MissingExtra,
    NotEnoughData,
    NotReady,
    PeerAbsent,
    RateLimited,
    RemoteError,
    RequestTimeout,
    SchemaMismatch,
    StoreFull,
    Superseded,
    TlsFailed,
    UnknownRequest,
)
from agentlace.inference import InferenceClient, InferenceServer
from agentlace.robot import ChunkedPolicyClient
from agentlace.trainer import (
    CheckpointPolicy,
    TrainerClient,
    TrainerServer,
    TrainerSMInterface,
)
from agentlace.transport.streams import Retention

__all__ = [
    "ActionClient",
    "ActionConfig",
    "ActionServer",
    "ActorReplaced",
    "AgentlaceError",
    "AlreadyServed",
    "ArraySpec",
    "BrokerAuthFailed",
    "BrokerURL",
    "BrokerUnreachable",
    "Busy",
    "CheckpointError",
    "CheckpointPolicy",
    "ChunkedPolicyClient",
    "Closed",
    "ConfigMismatch",
    "ControlHeld",
    "DecodeError",
    "EncodeError",
    "InferenceClient",
    "InferenceConfig",
    "InferenceServer",
    "MissingExtra",
    "NotEnoughData",
    "NotReady",
    "PeerAbsent",
    "RateLimited",
    "RemoteError",
    "RequestTimeout",
    "Retention",
    "SchemaMismatch",
    "StoreFull",
    "Superseded",
    "TlsFailed",
    "TrainerClient",
    "TrainerConfig",
    "TrainerSMInterface",
    "TrainerServer",
    "UnknownRequest",
    "__version__",
    "data",
]

# Not in __all__: a star import must not need an extra.
_NEED_GYMNASIUM = {
    "DefaultActionConfig": "gym_env",
    "GymEnvClient": "gym_env",
    "GymEnvServerWrapper": "gym_env",
    "RemoteVectorEnv": "vector_env",
}


def __getattr__(name: str) -> Any:
    """Import what needs an extra only when it is asked for."""
    if name not in _NEED_GYMNASIUM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"agentlace.{_NEED_GYMNASIUM[name]}"), name)
