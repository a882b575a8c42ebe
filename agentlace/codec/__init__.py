"""Trees of Python values and arrays ⇄ frames of bytes.

::

    frame.py     one frame: prefix, checked header, aligned leaf buffers
    tree.py      a tree of values ⇄ the header's msgpack, with the arrays set aside
    offender.py  where in a tree the value is that may not travel
    dtypes.py    dtype ⇄ the name it has in a header
    chunk.py     n transitions ⇄ one columnar frame
    shared.py    large frames that several rows refer to, stored once
    repeated.py  chunks of one structure, one after the other
    spaces.py    Gymnasium spaces ⇄ plain values

Nothing here knows about brokers, and nothing here uses pickle.
"""

from agentlace.codec.chunk import Chunk, decode_chunk, encode_chunk
from agentlace.codec.frame import Frame, Message, decode, encode, leaf_spans
from agentlace.codec.repeated import ChunkDecoder, ChunkEncoder
from agentlace.codec.tree import MAX_FRAME_BYTES

__all__ = [
    "MAX_FRAME_BYTES",
    "Chunk",
    "ChunkDecoder",
    "ChunkEncoder",
    "Frame",
    "Message",
    "decode",
    "decode_chunk",
    "encode",
    "encode_chunk",
    "leaf_spans",
]
