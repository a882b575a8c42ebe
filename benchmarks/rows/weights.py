"""Networks on their way from the trainer to all actors."""

import redis

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row
from benchmarks.processes import free_port

UNTIL = Metric("until_ms", "ms")
BLOCKED = Metric("blocked_ms", "ms")
TRAFFIC = Metric("traffic_mb", "MB")
WIRE = "earlier wire"
FULL, FROZEN = f"{US}, all of it changed", f"{US}, 90 % frozen"
SMALL, LARGE = 5_000_000, 100_000_000
FROZEN_BYTES = 20_000_000


def _delivered(trainer, actors):
    """Publish once; returns the milliseconds until the last actor has it, and of the call."""
    version, start, end = trainer.ask("publish")
    arrivals = [actor.ask("arrived", version=version) for actor in actors]
    return (max(arrivals) - start) / 1e6, (end - start) / 1e6


def _measure(trainer, actors):
    def measure(n):
        until, blocked = zip(*[_delivered(trainer, actors) for _ in range(n)], strict=True)
        return {"until_ms": list(until), "blocked_ms": list(blocked)}

    return measure


def _open_ours(nbytes, actors):
    def open_(stage):
        stage.broker()
        trainer = stage.program("ours_weights", "trainer", nbytes=nbytes)
        return _measure(trainer, [stage.program("ours_weights", "actor") for _ in range(actors)])

    return open_


def _open_wire(nbytes, actors):
    def open_(stage):
        args = {"environment": "wire", "port": free_port()}
        trainer = stage.program("zmq_weights", "trainer", nbytes=nbytes, **args)
        receivers = [stage.program("zmq_weights", "actor", **args) for _ in range(actors)]
        trainer.ask("joined", actors=actors)
        return _measure(trainer, receivers)

    return open_


def _row(nbytes, actors, n, extra=()):
    size = f"{nbytes // 1_000_000} MB"
    sooner = Goal("the last actor has it sooner", "until_ms", (WIRE,), (US,), least=3.0)
    who = f"{actors} actor{'s' if actors > 1 else ''}"
    return Row(
        name=f"weights_{nbytes // 1_000_000}mb_{actors}",
        title=f"weights of {size} to {who}",
        metrics=(UNTIL, BLOCKED),
        contestants=(
            Contestant(US, _open_ours(nbytes, actors)),
            Contestant(WIRE, _open_wire(nbytes, actors)),
        ),
        cases=(Case(f"{size} to {who}", {"n": n}, (sooner, *extra)),),
    )


def _open_metered(port, frozen):
    def open_(stage):
        meter = redis.Redis(port=stage.broker().settings.port)
        stage.callback(meter.close)
        args = {"nbytes": FROZEN_BYTES, "port": port, "frozen": frozen}
        trainer = stage.program("ours_weights", "trainer", **args)
        actor = stage.program("ours_weights", "actor", port=port)

        def moved():
            told = meter.info("stats")
            return told["total_net_input_bytes"] + told["total_net_output_bytes"]

        def measure(n):
            before = moved()
            for _ in range(n):
                _delivered(trainer, [actor])
            return {"traffic_mb": [(moved() - before) / n / 1e6]}

        return measure

    return open_


FROZEN_ROW = Row(
    name="weights_frozen",
    title="weights with a frozen encoder (90 % of bytes unchanged), bytes in and out of the broker",
    metrics=(TRAFFIC,),
    contestants=(
        Contestant(FULL, _open_metered(5555, 0.0)),
        Contestant(FROZEN, _open_metered(5557, 0.9)),
    ),
    cases=(
        Case(
            "20 MB to 1 actor",
            {"n": 3},
            (Goal("fewer bytes than a full send", "traffic_mb", (FULL,), (FROZEN,), least=6.0),),
        ),
    ),
)

_BLOCKED = Goal("milliseconds that publish_network blocks", "blocked_ms", (US,), most=5.0)

ROWS = (
    _row(SMALL, 1, 10, (_BLOCKED,)),
    _row(SMALL, 4, 10, (_BLOCKED,)),
    _row(LARGE, 1, 2),
    _row(LARGE, 4, 2),
    FROZEN_ROW,
)
