"""The action service: a robot or environment serves observations and executes actions.

::

    server.py      ActionServer: the robot's end
    publishing.py  the part of it that broadcasts observations
    client.py      ActionClient: the end of whoever drives or watches it
    driving.py     the part of it that takes exclusive control
    rate.py        observations published at a fixed rate
    latest.py      the newest observation, with its age
    images.py      images of observations, encoded and decoded
    watchdog.py    what is done when no action comes
    control.py     who alone may drive, as the server knows it
    claim.py       and as a client does
    known.py       keys that nobody declared
"""

from agentlace.action.client import ActionClient
from agentlace.action.control import Holder
from agentlace.action.images import ImageTimes
from agentlace.action.latest import Latest
from agentlace.action.rate import RatePublisher
from agentlace.action.server import ActionServer
from agentlace.codec.images import Resize
from agentlace.config import ActionConfig

__all__ = [
    "ActionClient",
    "ActionConfig",
    "ActionServer",
    "Holder",
    "ImageTimes",
    "Latest",
    "RatePublisher",
    "Resize",
]
