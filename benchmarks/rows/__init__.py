"""The table's rows, one module a kind of work."""

from benchmarks.rows import calls, sampling, transitions, weights

ALL = {row.name: row for module in (calls, transitions, weights, sampling) for row in module.ROWS}
