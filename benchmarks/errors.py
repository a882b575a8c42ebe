"""What can go wrong with a benchmark.

BenchmarkError
├── Unavailable     a peer cannot be installed or does not run here; the row goes on without it
├── ProgramFailed   a measured process ended, failed or did not answer
└── RowTimeout      a row has used up its time
"""


class BenchmarkError(Exception):
    pass


class Unavailable(BenchmarkError):
    pass


class ProgramFailed(BenchmarkError):
    pass


class RowTimeout(BenchmarkError):
    pass
