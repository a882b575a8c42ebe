"""Batches of images, sampled and moved to a GPU before they are asked for."""

import subprocess
import sys

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row

RATE = Metric("rate", "GB/s", lower_is_better=False)
PINNED, PLAIN, SAMPLE = "copy from pinned memory", "copy from plain memory", "sampling alone"
BATCH = 256
ROWS_FULL, ROWS_QUICK = 20_000, 1_000
PLATFORM = "gpu"
ASK_TIMEOUT_S = 120.0


def missing():
    """Return why there is nothing to measure here; None if there is a GPU that JAX sees."""
    code = f"import jax; print(jax.devices({PLATFORM!r})[0].device_kind)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=ASK_TIMEOUT_S
    )
    if found.returncode == 0:
        return None
    said = found.stderr.strip().splitlines() or ["nothing"]
    return f"it needs a GPU that JAX sees; JAX says: {said[-1][:200]}"


class _Shared:
    """The process whose store and device all contestants share, opened by whoever comes first."""

    def __init__(self):
        self._programs = {}

    def open(self, stage):
        if stage not in self._programs:
            rows = ROWS_QUICK if stage.quick else ROWS_FULL
            args = {"rows": rows, "batch": BATCH, "platform": PLATFORM}
            self._programs[stage] = stage.program("ours_prefetch", "prefetch", **args)
        return self._programs[stage]


_shared = _Shared()


def _opener(do, **fixed):
    def open_(stage):
        program = _shared.open(stage)
        return lambda n: {"rate": program.ask(do, n=n, **fixed)}

    return open_


ROWS = (
    Row(
        name="prefetch_images",
        title="batches of 256 image transitions from the replay buffer to a GPU",
        metrics=(RATE,),
        contestants=(
            Contestant(US, _opener("arrive")),
            Contestant(PINNED, _opener("copy", pinned=True)),
            Contestant(PLAIN, _opener("copy", pinned=False)),
            Contestant(SAMPLE, _opener("sample")),
        ),
        cases=(
            Case(
                "batch of 256",
                {"n": 50},
                (
                    Goal(
                        "share of the device's copy bandwidth", "rate", (US,), (PINNED,), least=0.5
                    ),
                    Goal("share of a copy from plain memory", "rate", (US,), (PLAIN,), least=0.8),
                ),
                rounds=5,
                warmup={"n": 10},
            ),
        ),
        bound_s=600.0,
        notes=(
            "Two 128x128x3 cameras, observation and next observation, in each transition. A batch "
            "is sampled from 20,000 rows and moved by data.Prefetch; the copies move one array of "
            "its size.",
        ),
        missing=missing,
    ),
)
