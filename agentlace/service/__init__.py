"""What all servers have in common, and all clients: connecting, presence, an orderly end.

::

    server.py    Server: the serving end of a service
    client.py    Client: the calling end of a service
    running.py   what still runs when its program ends
    sigterm.py   what is done before SIGTERM takes its way
    measured.py  what shows a node's numbers over HTTP
"""

from agentlace.service.client import SOFT_ERRORS, Client
from agentlace.service.server import Server

__all__ = ["SOFT_ERRORS", "Client", "Server"]
