"""A broker that is killed with a full stream, and comes back from its log."""

import os
import signal
import time

from agentlace.transport.embedded import EmbeddedBroker
from benchmarks.model import US, Case, Contestant, Metric, Row
from benchmarks.rows.transitions import CAPACITY

ROW_BYTES = 2 * 128 * 128 * 3
POOL, EVERY = 200, 100
FULL_MIB, QUICK_MIB = 1000, 40
"""A little below the retention of 1 GiB, so that all of it stays."""
SETTLE_S = 1.5
"""By then the log is written, with everysec, so that all of it is read again."""
LOAD_TIMEOUT_S = 120.0


def _open(stage):
    folder = stage.folder()
    broker = stage.broker(folder)
    trainer = stage.program("ours_streams", "trainer", capacity=CAPACITY["images"])
    actor = stage.program("ours_streams", "actor", kind="images", pool=POOL)
    rows = (QUICK_MIB if stage.quick else FULL_MIB) * 2**20 // ROW_BYTES
    actor.ask("send", 200.0, n=rows, every=EVERY)
    trainer.ask("applied", total=rows)

    def measure():
        nonlocal broker
        time.sleep(SETTLE_S)
        killed = time.monotonic_ns()
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        actor.tell("flow")
        broker = stage.enter_context(EmbeddedBroker(broker.settings))
        answers = time.monotonic_ns()
        flows = actor.answer(LOAD_TIMEOUT_S)
        return {"answers_s": [(answers - killed) / 1e9], "flows_s": [(flows - killed) / 1e9]}

    return measure


ROWS = (
    Row(
        name="broker_restart",
        title="broker killed with 1 GiB of retained stream, and started again",
        metrics=(Metric("answers_s", "s"), Metric("flows_s", "s")),
        contestants=(Contestant(US, _open),),
        cases=(Case("killed, until it answers, and until transitions flow", {}, rounds=3),),
        bound_s=300.0,
        notes=("--quick retains 40 MiB only.",),
    ),
)
