"""Memory of large replies that nothing refers to any more, to be used again."""

from __future__ import annotations

from agentlace.pool import Pool

LEAST_BYTES = 128 << 10
MAX_BYTES = 64 << 20
"""Replies of these sizes come into memory that is kept; not more than this of it, in all."""

memory = Pool(LEAST_BYTES, MAX_BYTES).memory
