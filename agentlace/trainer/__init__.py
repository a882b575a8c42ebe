"""The trainer service: actors feed the trainer's data stores and receive its networks.

::

    server.py           TrainerServer: consumers of the streams, publisher of networks
    stores.py           the trainer's stores, each filled from its streams
    client.py           TrainerClient: an actor's end
    async_update.py     update() in a thread of its own
    episodes.py         where an actor's episodes begin and end
    networks.py         an actor's networks: received, checked, and which of them it acts with
    outbox.py           one store's way from the actor into its stream
    checkpoints.py      a trainer's checkpoints: one save or restore at a time
    checkpointer.py     what is saved into a folder, and brought back
    manifest.py         the file that makes a folder a checkpoint
    saving.py           when a trainer saves by itself
    pause.py            both ends of a pause of all actors
    pause_state.py      whether there is a pause, as an actor's program sees it
    pausable_client.py  a client whose trainer may pause it
    request_settings.py what existing programs set on a client
    single_process.py   TrainerSMInterface: the same calls within one process
"""

from agentlace.config import TrainerConfig
from agentlace.trainer.client import TrainerClient
from agentlace.trainer.saving import CheckpointPolicy
from agentlace.trainer.server import TrainerServer
from agentlace.trainer.single_process import TrainerSMInterface

__all__ = [
    "CheckpointPolicy",
    "TrainerClient",
    "TrainerConfig",
    "TrainerSMInterface",
    "TrainerServer",
]
