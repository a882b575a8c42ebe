"""Transitions on their way from the actor's store into the trainer's."""

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row
from benchmarks.processes import free_port

RATE = Metric("rate", "transitions/s", lower_is_better=False)
WIRE = "earlier wire"
REVERB = ("Reverb trajectory", "Reverb writer")
CAPACITY = {"cheetah": 200_000, "images": 400}
POOL = {"cheetah": 2_000, "images": 200}
"""Different rows; a store's worth of images would not fit the memory of every process."""


def _rate(n, start, end):
    return {"rate": [n / ((end - start) / 1e9)]}


def _open_ours(kind):
    def open_(stage):
        stage.broker()
        trainer = stage.program("ours_streams", "trainer", capacity=CAPACITY[kind])
        actor = stage.program("ours_streams", "actor", kind=kind, pool=POOL[kind])
        total = 0

        def measure(n, every):
            nonlocal total
            total += n
            start, end = actor.ask("send", n=n, every=every)
            return _rate(n, start, max(end, trainer.ask("applied", total=total)))

        return measure

    return open_


def _sending(actor):
    """Measure a peer whose update returns when the trainer's store has the rows."""

    def measure(n, every):
        start, end = actor.ask("send", n=n, every=every)
        return _rate(n, start, end)

    return measure


def _open_wire(kind):
    def open_(stage):
        port = free_port()
        args = {"environment": "wire", "port": port}
        stage.program("zmq_streams", "trainer", capacity=CAPACITY[kind], **args)
        return _sending(stage.program("zmq_streams", "actor", kind=kind, pool=POOL[kind], **args))

    return open_


def _open_reverb(kind, role):
    def open_(stage):
        args = {"environment": "reverb", "port": free_port(), "kind": kind}
        server = "server" if role == "actor" else "plain_server"
        stage.program("reverb_nodes", server, capacity=CAPACITY[kind], **args)
        return _sending(stage.program("reverb_nodes", role, pool=POOL[kind], **args))

    return open_


def _contestants(kind):
    return (
        Contestant(US, _open_ours(kind)),
        Contestant(WIRE, _open_wire(kind)),
        Contestant(REVERB[0], _open_reverb(kind, "actor")),
        Contestant(REVERB[1], _open_reverb(kind, "old_actor")),
    )


def _case(name, n, every, wire, reverb=None, warmup=None):
    goals = [Goal("rate against the earlier wire", "rate", (US,), (WIRE,), least=wire)]
    if reverb:
        goals.append(
            Goal("rate against Reverb's better writer", "rate", (US,), REVERB, least=reverb)
        )
    params = {"n": n, "every": every}
    return Case(name, params, tuple(goals), warmup={"n": warmup or n})


RETAINED_ROWS = 12_000
"""More images than the retention of 1 GiB holds: from then on old ones are trimmed."""
_STORES = (
    "Ours ends when the trainer's replay buffer has the rows as columns, ready to sample; the "
    "earlier wire's when a deque has them as dicts."
)

STATES = Row(
    name="transitions",
    title="HalfCheetah transitions, all different, actor store to trainer store",
    metrics=(RATE,),
    contestants=_contestants("cheetah"),
    cases=(
        _case("update() every 50", 10_000, 50, wire=4.0, reverb=8.0),
        _case("update() each step", 1_000, 1, wire=3.0),
    ),
    notes=(_STORES,),
)

IMAGES = Row(
    name="transitions_images",
    title="transitions with two 128x128x3 cameras of noise, consecutive rows share a frame",
    metrics=(RATE,),
    contestants=_contestants("images"),
    cases=(
        _case("update() every 100", 400, 100, wire=3.0, reverb=2.0, warmup=1_200),
        _case("update() each step", 200, 1, wire=2.0),
        _case(
            "update() every 100, retention used up",
            400,
            100,
            wire=3.0,
            reverb=2.0,
            warmup=RETAINED_ROWS,
        ),
    ),
    notes=(_STORES,),
)

ROWS = (STATES, IMAGES)
