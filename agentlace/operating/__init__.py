"""How the whole system stands, read from the broker alone.

:func:`take` returns a :class:`Snapshot`; of two of them :func:`rates` tells how fast what counts
is growing. ``agentlace status``, the dashboard, its Prometheus endpoint and ``agentlace doctor``
show the same snapshot.
"""

from agentlace.operating.brokers import BrokerState
from agentlace.operating.peers import Peer
from agentlace.operating.snapshot import Snapshot, rates, take
from agentlace.operating.stores import StoreState, StreamState

__all__ = ["BrokerState", "Peer", "Snapshot", "StoreState", "StreamState", "rates", "take"]
