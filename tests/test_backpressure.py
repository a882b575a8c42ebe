"""While a consumer stands still, every process stays within its bounds, and who it is is said."""

import pytest

from agentlace.transport.fetching import BATCH_BYTES
from agentlace.transport.pool import MAX_BYTES as POOL_BYTES
from benchmarks.backpressure import (
    ACTOR_BOUND_BYTES,
    BROKER_BYTES,
    MIB,
    QUEUE_ROWS,
    ROW_BYTES,
    SCENARIOS,
    Run,
    wait_until,
)

RUNTIME_BYTES = 90 * MIB
"""What Python, numpy and a few chunks under way need, with some room."""
READER_BYTES = POOL_BYTES + 2 * QUEUE_ROWS * ROW_BYTES
"""Memory for replies that is used again, and the store."""
SERVER_BYTES = 20 * MIB + 2 * BATCH_BYTES
"""The server itself, and answers that are under way to two readers."""


@pytest.mark.parametrize("name", ["drop_oldest", "recorder", "maxmemory"])
def test_memory_stays_bounded(name):
    scenario = SCENARIOS[name]
    with Run(scenario) as run:
        run.produce(1000)
        run.stand_still()
        run.produce(2000 if scenario.when_full == "drop_oldest" else 60)
        told = run.actor.lines
        if scenario.when_full == "block":
            wait_until(lambda: f"consumer '{scenario.slow}:" in told[-1], f"{told[-1:]}")
        run.go_on()
        run.produce(100 if scenario.is_filled else 500)
    made = run.actor.made * ROW_BYTES
    assert made > ACTOR_BOUND_BYTES  # more than it may hold
    assert run.most("actor") < RUNTIME_BYTES + ACTOR_BOUND_BYTES
    assert run.most("broker") < BROKER_BYTES + SERVER_BYTES
    for reader in run.nodes.keys() - {"actor"}:
        assert run.most(reader) < RUNTIME_BYTES + READER_BYTES
