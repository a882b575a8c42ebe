"""The table's rows, one module a kind of work."""

from benchmarks.rows import (
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

_MODULES = (calls, transitions, weights, sampling, prefetch, fleet, restart, rlds, growth)

ALL = {row.name: row for module in _MODULES for row in module.ROWS}
