"""Trees of Python values and arrays ⇄ frames of bytes.

::

    frame.py     one frame: prefix, checked header, aligned leaf buffers
    tree.py      a tree of values ⇄ the header's msgpack, with the arrays set aside
    offender.py  where in a tree the value is that may not travel
    dtypes.py    dtype ⇄ the name it has in a header
    chunk.py     n transitions ⇄ one columnar frame
    shared.py    large frames that several rows refer to, stored once
    repeated.py  chunks of one structure, one after the other
    signature.py what a tree must look like
    stamped.py   trees with a stamp, of one structure, one after the other
    unstamped.py their receiving end
    mark.py      where an episode begins, ends or is discarded ⇄ one frame
    spaces.py    Gymnasium spaces ⇄ plain values

Nothing here knows about brokers, and nothing here uses pickle.
"""

from agentlace.codec.chunk import Chunk, decode_chunk, encode_chunk
from agentlace.codec.frame import Frame, Message, decode, encode, leaf_spans
from agentlace.codec.mark import Mark, decode_mark, encode_mark
from agentlace.codec.repeated import ChunkDecoder, ChunkEncoder
from agentlace.codec.signature import ArraySpec, Signature
from agentlace.codec.stamped import StampedEncoder, encode_stamped
from agentlace.codec.tree import MAX_FRAME_BYTES
from agentlace.codec.unstamped import StampedDecoder

__all__ = [
    "MAX_FRAME_BYTES",
    "ArraySpec",
    "Chunk",
    "ChunkDecoder",
    "ChunkEncoder",
    "Frame",
    "Mark",
    "Message",
    "Signature",
    "StampedDecoder",
    "StampedEncoder",
    "decode",
    "decode_chunk",
    "decode_mark",
    "encode",
    "encode_chunk",
    "encode_mark",
    "encode_stamped",
    "leaf_spans",
]
