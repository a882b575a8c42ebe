"""The table's rows, one module a kind of work."""

from benchmarks.rows import (
    batching,
    calls,
    fleet,
    growth,
    prefetch,
    restart,
    rlds,
    sampling,
    transitions,
    weights,
)

_MODULES = (
    calls,
    transitions,
    weights,
    sampling,
    prefetch,
    fleet,
    batching,
    restart,
    rlds,
    growth,
)

ALL = {row.name: row for module in _MODULES for row in module.ROWS}
