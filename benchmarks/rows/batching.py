"""A policy whose cost is per call: one by one, in batches, and with two servers."""

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row
from benchmarks.rows.calls import MICROSECONDS
from benchmarks.rows.growth import open_crowd

RATE = Metric("rate", "calls/s", lower_is_better=False)
COST_MS = 5.0
SIZE = 1024
MAX_BATCH = 32
CLIENTS = (1, 4, 16, 32, 64)
BATCHES = (1, 4, 16, 64)
MANY = 64
PLAIN, BATCHED, TWO = f"{US}, one by one", f"{US}, batched", f"{US}, batched, 2 servers"


def _start(servers, number=2, **settings):
    """Return a starter of servers with a number of their own: those of one would share calls."""

    def start(stage):
        stage.broker()
        for _ in range(servers):
            stage.program("ours_calls", "policy_server", cost_ms=COST_MS, number=number, **settings)
        return {"number": number}

    return start


def _open_batches(servers):
    """Return an opener whose ``measure`` starts servers with the size that it is told."""

    def open_(stage):
        call_at_once = open_crowd(_start(0), "ours")(stage)

        def measure(max_batch, clients, size):
            settings = dict(cost_ms=COST_MS, batch=True, max_batch=max_batch)
            started = [
                stage.program("ours_calls", "policy_server", **settings) for _ in range(servers)
            ]
            measured = call_at_once(clients, size)
            for server in started:
                server.stop()
            return measured

        return measure

    return open_


def _goals(clients):
    if clients == MAX_BATCH:
        return (Goal("batched: calls/s of one by one", "rate", (BATCHED,), (PLAIN,), least=8.0),)
    if clients == 1:
        return (Goal("batched: time of one by one", "us", (BATCHED,), (PLAIN,), most=1.1),)
    return ()


CROWD = Row(
    name="batch_clients",
    title=f"a policy that takes {COST_MS:g} ms a call, as clients are added",
    metrics=(MICROSECONDS, RATE),
    contestants=(
        Contestant(PLAIN, open_crowd(_start(1, 3), "ours")),
        Contestant(BATCHED, open_crowd(_start(1, 4, batch=True, max_batch=MAX_BATCH), "ours")),
        Contestant(TWO, open_crowd(_start(2, 5, batch=True, max_batch=MAX_BATCH), "ours")),
    ),
    cases=tuple(
        Case(f"{n} clients", {"clients": n, "size": SIZE}, _goals(n), rounds=2, x=n)
        for n in CLIENTS
    ),
    bound_s=300.0,
    x_name="clients",
    notes=(
        f"It sleeps for {COST_MS:g} ms, whatever it is given; at most {MAX_BATCH} calls a batch.",
    ),
)

SIZES = Row(
    name="batch_sizes",
    title=f"a policy that takes {COST_MS:g} ms a call and has {MANY} clients, as batches grow",
    metrics=(MICROSECONDS, RATE),
    contestants=(
        Contestant(BATCHED, _open_batches(1)),
        Contestant(TWO, _open_batches(2)),
    ),
    cases=tuple(
        Case(f"max_batch={n}", {"max_batch": n, "clients": MANY, "size": SIZE}, rounds=2, x=n)
        for n in BATCHES
    ),
    bound_s=300.0,
    x_name="calls in a batch, at most",
)

ROWS = (CROWD, SIZES)
