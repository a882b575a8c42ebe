"""The action service: a robot or environment serves observations and executes actions.

::

    server.py    ActionServer: the robot's end
    client.py    ActionClient: the end of whoever drives or watches it
    known.py     keys that nobody declared
"""

from agentlace.action.client import ActionClient
from agentlace.action.server import ActionServer
from agentlace.config import ActionConfig

__all__ = ["ActionClient", "ActionConfig", "ActionServer"]
