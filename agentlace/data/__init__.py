"""Data stores: where transitions wait to be sent, and where they are sampled from.

::

    data_store.py         the contract, and the actor's queue
    columns.py            trees of arrays with a leading dimension, and their schema
    replay_buffer.py      a ring buffer over numpy, sampled uniformly
    jaxrl_data_store.py   the same, with its shapes given by Gymnasium spaces
"""

from agentlace.data.data_store import DataStoreBase, QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer

__all__ = ["DataStoreBase", "QueuedDataStore", "ReplayBuffer"]
