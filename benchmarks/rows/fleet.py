"""64 actors at 50 Hz."""

import statistics

import psutil

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row

ACTORS, PROCESSES, RATE_HZ = 64, 8, 50
WANTED = ACTORS * RATE_HZ


class _Meter:
    """CPU seconds of a process, between two looks."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self.used_s()

    def used_s(self):
        times = self._process.cpu_times()
        now = times.user + times.system
        used, self._last = now - getattr(self, "_last", now), now
        return used


def _lags(noted):
    """Return all lags in milliseconds, and how many they gain per second."""
    start, end = noted[0][0], noted[-1][0]
    thirds = [[], [], []]
    for when, ages in noted:
        thirds[min(2, int(3 * (when - start) / (end - start)))] += [1000 * age for age in ages]
    first, last = (statistics.median(third) for third in (thirds[0], thirds[2]))
    drift = (last - first) / ((end - start) * 2 / 3)
    return [lag for third in thirds for lag in third], drift


def _open(stage):
    broker = stage.broker()
    trainer = stage.program("fleet", "trainer")
    groups = [stage.program("fleet", "actors", count=ACTORS // PROCESSES) for _ in range(PROCESSES)]
    meters = {"broker_cpu": _Meter(broker.pid), "trainer_cpu": _Meter(trainer.pid)}

    def measure(seconds):
        trainer.ask("noted")
        for meter in meters.values():
            meter.used_s()
        for group in groups:
            group.tell("step", seconds=seconds, rate_hz=RATE_HZ)
        done = [group.answer(seconds + 60) for group in groups]
        took = max(took for _, _, took in done)
        shares = {name: [100 * meter.used_s() / took] for name, meter in meters.items()}
        lags, drift = _lags(trainer.ask("noted"))
        rate = len(lags) / took
        return {"rate": [rate], "lag_ms": lags, "lag_drift": [drift], **shares}

    return measure


ROWS = (
    Row(
        name="fleet",
        title="64 actors at 50 Hz with HalfCheetah transitions, update() each step",
        metrics=(
            Metric("rate", "transitions/s", lower_is_better=False),
            Metric("lag_ms", "ms"),
            Metric("lag_drift", "ms gained per s"),
            Metric("broker_cpu", "% of a core"),
            Metric("trainer_cpu", "% of a core"),
        ),
        contestants=(Contestant(US, _open),),
        cases=(
            Case(
                "64 actors",
                {"seconds": 10},
                (
                    Goal(f"steady: transitions/s of {WANTED}", "rate", (US,), least=0.99 * WANTED),
                    Goal("bounded: ms of lag gained per s", "lag_drift", (US,), most=5.0),
                ),
                rounds=3,
                warmup={"seconds": 2},
            ),
        ),
        bound_s=180.0,
        notes=(
            f"{PROCESSES} processes step {ACTORS // PROCESSES} actors each, one after the other; "
            "the actors share the cores with the broker and the trainer.",
        ),
    ),
)
