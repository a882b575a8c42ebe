"""Sampling batches of 256 from a replay buffer."""

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row
from benchmarks.processes import free_port

MICROSECONDS = Metric("us", "µs")
NUMPY = "numpy indexing"
REVERB = ("Reverb client", "Reverb dataset")
BATCH = 256
ROWS_FULL = {"cheetah": 1_000_000, "images": 20_000}
ROWS_QUICK = {"cheetah": 5_000, "images": 1_000}
FILL_TIMEOUT_S = 400.0


class _Shared:
    """What the contestants of one row have in common, opened by whoever comes first."""

    def __init__(self, kind):
        self.kind = kind
        self._buffers = {}
        self._tables = {}

    def rows(self, stage):
        return (ROWS_QUICK if stage.quick else ROWS_FULL)[self.kind]

    def buffer(self, stage):
        if stage not in self._buffers:
            args = {"kind": self.kind, "rows": self.rows(stage)}
            self._buffers[stage] = stage.program("ours_sampling", "buffer", **args)
        return self._buffers[stage]

    def table(self, stage):
        """Return the port of a Reverb server whose table is full."""
        if stage not in self._tables:
            rows, kind = self.rows(stage), self.kind
            port = self._tables[stage] = free_port()
            args = {"environment": "reverb", "port": port, "kind": kind}
            stage.program("reverb_nodes", "server", capacity=rows, **args)
            filler = stage.program("reverb_nodes", "actor", pool=200, **args)
            filler.ask("send", FILL_TIMEOUT_S, n=rows, every=200)
        return self._tables[stage]


def _contestants(kind):
    shared = _Shared(kind)

    def ours(do):
        def open_(stage):
            program = shared.buffer(stage)
            return lambda batch, n, slow_n: {"us": program.ask(do, batch=batch, n=n)}

        return open_

    def reverb(role, **fixed):
        def open_(stage):
            args = {"environment": "reverb", "port": shared.table(stage), **fixed}
            program = stage.program("reverb_nodes", role, **args)
            return lambda batch, n, slow_n: {"us": program.ask("sample", batch=batch, n=slow_n)}

        return open_

    return (
        Contestant(US, ours("sample")),
        Contestant(NUMPY, ours("index")),
        Contestant(REVERB[0], reverb("sampler")),
        Contestant(REVERB[1], reverb("dataset", batch=BATCH)),
    )


def _row(name, kind, title, n, slow_n, bound_s):
    goals = (
        Goal("faster than Reverb's better way", "us", REVERB, (US,), least=20.0),
        Goal("share of numpy's speed", "us", (NUMPY,), (US,), least=0.8),
    )
    params = {"batch": BATCH, "n": n, "slow_n": slow_n}
    return Row(
        name=name,
        title=title,
        metrics=(MICROSECONDS,),
        rests=True,
        contestants=_contestants(kind),
        cases=(Case("batch of 256", params, goals, rounds=5, warmup={"slow_n": slow_n // 2}),),
        bound_s=bound_s,
        notes=("numpy is given its indices; ours draws them. --quick fills smaller buffers.",),
    )


ROWS = (
    _row("sampling", "cheetah", "sampling 256 of 1M state transitions", 2000, 20, 600.0),
    _row("sampling_images", "images", "sampling 256 of 20k image transitions", 30, 6, 600.0),
)
