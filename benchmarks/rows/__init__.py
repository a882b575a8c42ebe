"""The table's rows, one module a kind of work."""

from benchmarks.rows import calls

ALL = {row.name: row for module in (calls,) for row in module.ROWS}
