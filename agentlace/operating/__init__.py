"""How the whole system stands, read from the broker alone.

:func:`take` returns a :class:`Snapshot`; of two of them :func:`rates` tells how fast what counts
is growing. ``agentlace status``, the dashboard, its Prometheus endpoint and ``agentlace doctor``
show the same snapshot. :func:`problems` names what is wrong in one; :func:`report` puts two of
them into the plain values that ``agentlace status --json`` prints.
"""

from agentlace.operating.brokers import BrokerState
from agentlace.operating.looking import Looker
from agentlace.operating.peers import Peer
from agentlace.operating.problems import Problem, problems
from agentlace.operating.report import Report, report
from agentlace.operating.snapshot import Snapshot, rates, take
from agentlace.operating.stores import StoreState, StreamState

__all__ = [
    "BrokerState",
    "Looker",
    "Peer",
    "Problem",
    "Report",
    "Snapshot",
    "StoreState",
    "StreamState",
    "problems",
    "rates",
    "report",
    "take",
]
