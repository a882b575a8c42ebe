"""How cost grows: with the payload, the number of clients, the tree's width, the stream."""

from benchmarks.model import US, Case, Contestant, Metric, Row
from benchmarks.processes import free_port
from benchmarks.rows.calls import (
    LISTS,
    MICROSECONDS,
    WIRE,
    open_call,
    open_lists_echo,
    open_wire_call,
)

RATE = Metric("rate", "calls/s", lower_is_better=False)
UPDATE = Metric("update_us", "µs")
CATCH_UP = Metric("catch_up_s", "s")

PAYLOADS = tuple(4**power for power in range(3, 14))
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
LEAVES = (1, 3, 10, 30, 100, 300, 1000)
RETAINED_MIB = (0, 64, 128, 256, 512, 832)
"""Beyond, and with the updates that are timed, old rows would be trimmed."""
UPDATES = 20
QUICK_SHARE = 0.05
PROCESSES = 4
CROWD_SECONDS = 1.0
ROW_BYTES = 2 * 128 * 128 * 3


def _size(nbytes):
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"


def _calls_for(nbytes):
    """Return how many calls a round makes: fewer of the large ones."""
    return max(3, min(300, (32 << 20) // nbytes))


def _payload_case(nbytes):
    params = {"kind": "blob", "size": nbytes, "n": _calls_for(nbytes)}
    rounds = 5 if nbytes < 1 << 20 else 3
    return Case(_size(nbytes), params, rounds=rounds, warmup={"n": 2}, x=nbytes)


PAYLOAD = Row(
    name="grow_payload",
    title="call round trip as the payload grows",
    metrics=(MICROSECONDS,),
    contestants=(
        Contestant(US, open_call),
        Contestant(WIRE, open_wire_call),
        Contestant(LISTS, open_lists_echo),
    ),
    cases=tuple(map(_payload_case, PAYLOADS)),
    bound_s=300.0,
    x_name="payload, bytes",
    notes=("There and back again: the payload is echoed. Noise, which no compressor shrinks.",),
)

LEAF = Row(
    name="grow_leaves",
    title="call round trip as the tree gets wider (8 float32 a leaf)",
    metrics=(MICROSECONDS,),
    contestants=(Contestant(US, open_call), Contestant(WIRE, open_wire_call)),
    cases=tuple(
        Case(f"{n} leaves", {"kind": "wide", "size": n, "n": 200}, rounds=5, warmup={"n": 20}, x=n)
        for n in LEAVES
    ),
    x_name="leaves",
)


def open_crowd(start_server, role, environment=None, **args):
    """Return an opener whose ``measure`` has as many clients as it is asked for call at once."""

    def open_(stage):
        server_args = start_server(stage)

        def measure(clients, size):
            processes = min(clients, PROCESSES)
            crowds = [
                stage.program(
                    "crowds", role, environment, threads=clients // processes, **server_args
                )
                for _ in range(processes)
            ]
            for crowd in crowds:
                crowd.tell("round", size=size, seconds=CROWD_SECONDS)
            durations = [us for crowd in crowds for us in crowd.answer()]
            for crowd in crowds:
                crowd.stop()
            return {"us": durations, "rate": [len(durations) / CROWD_SECONDS]}

        return measure

    return open_


def _our_server(stage):
    stage.broker()
    stage.program("ours_calls", "inference_server")
    return {}


def _wire_server(stage):
    port = free_port()
    stage.program("zmq_calls", "server", environment="wire", port=port)
    return {"port": port}


CROWD = Row(
    name="grow_clients",
    title="calls of 1 KiB to one server as clients are added, each calling without pause",
    metrics=(MICROSECONDS, RATE),
    contestants=(
        Contestant(US, open_crowd(_our_server, "ours")),
        Contestant(WIRE, open_crowd(_wire_server, "wire", environment="wire")),
    ),
    cases=tuple(Case(f"{n} clients", {"clients": n, "size": 1024}, rounds=3, x=n) for n in CLIENTS),
    bound_s=300.0,
    x_name="clients",
    notes=(f"Clients are threads of at most {PROCESSES} processes.",),
)


def _open_stream(stage):
    stage.broker()
    trainer = stage.program("ours_streams", "trainer", capacity=400)
    actor = stage.program("ours_streams", "actor", kind="images", pool=200)
    total = 0

    def measure(mib, updates):
        """Retain up to so much, then time updates of one row, and a trainer that starts anew."""
        nonlocal total
        more = max(0, (QUICK_SHARE * mib if stage.quick else mib) * 2**20 // ROW_BYTES - total)
        if more:
            actor.ask("send", n=int(more), every=100)
        durations = actor.ask("updates", n=updates, every=1)
        total += int(more) + updates
        trainer.ask("applied", total=total)
        return {"update_us": durations, "catch_up_s": [trainer.ask("catch_up", total=total)]}

    return measure


STREAM = Row(
    name="grow_stream",
    title="as the retained stream grows: update() of one image row, and a new trainer's catch-up",
    metrics=(UPDATE, CATCH_UP),
    contestants=(Contestant(US, _open_stream),),
    cases=tuple(
        Case(f"{mib} MiB", {"mib": mib, "updates": UPDATES}, rounds=3, x=mib)
        for mib in RETAINED_MIB
    ),
    bound_s=300.0,
    x_name="retained, MiB",
    notes=("--quick retains a twentieth.",),
)

ROWS = (PAYLOAD, CROWD, LEAF, STREAM)
