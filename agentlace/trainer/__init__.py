"""The trainer service: actors feed the trainer's data stores and receive its networks.

::

    server.py           TrainerServer: consumers of the streams, publisher of networks
    client.py           TrainerClient: an actor's end
    async_update.py     update() in a thread of its own
    episodes.py         where an actor's episodes begin and end
    outbox.py           one store's way from the actor into its stream
    request_settings.py what existing programs set on a client
    single_process.py   TrainerSMInterface: the same calls within one process
"""

from agentlace.config import TrainerConfig
from agentlace.trainer.client import TrainerClient
from agentlace.trainer.server import TrainerServer
from agentlace.trainer.single_process import TrainerSMInterface

__all__ = ["TrainerClient", "TrainerConfig", "TrainerSMInterface", "TrainerServer"]
