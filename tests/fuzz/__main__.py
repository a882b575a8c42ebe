"""Fuzz for a while: ``python -m tests.fuzz --seconds 600``; the last line sums up, as JSON.

Every target gets rounds of examples in turn. A failure prints the example and the seed of its
round; ``--seed`` begins with that one.
"""

import argparse
import contextlib
import faulthandler
import json
import logging
import random
import resource
import sys
import threading
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

from . import targets

ROUND = {"Decoder": 200, "Requests": 60, "Streams": 30, "Presence": 60, "Weights": 12}
ROUND |= {"Broadcast": 12}
"""So many examples of one target before it is another one's turn; receivers of networks and
observations pause after what is damaged."""
EXTRA_BYTES = 3 << 30
"""No more address space than this, beside what is there when it begins."""
GROWTH_BYTES = 400 << 20
"""The process may become so much larger while it runs."""
HANG_S = 120


class Records(logging.Handler):
    """Remembers which of some names were logged, and errors that nobody expected."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self._text = ""
        self.unexpected = []
        self.lines = 0

    def emit(self, record):
        text = record.getMessage()
        self.lines += 1
        self._text = (self._text + text)[-50_000:]
        if record.exc_info and record.name.startswith("agentlace.transport"):
            self.unexpected.append(self.format(record))

    def has(self, name):
        """Whether a name was logged lately."""
        return name in self._text


def watch_threads(records):
    """Take note of threads that end with an exception."""

    def note(args):
        records.unexpected.append(f"thread {args.thread.name}: {args.exc_value!r}")

    threading.excepthook = note


def run_round(target, number):
    """Give one round of examples to a target."""

    @seed(number)
    @settings(
        max_examples=ROUND[type(target).__name__],
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(target.frames)
    def test(example):
        target(example)

    test()


def size_bytes():
    with open("/proc/self/statm") as statm:
        pages = statm.read().split()
    return [int(pages[i]) * resource.getpagesize() for i in (0, 1)]


def peak_bytes():
    """Return the most memory that this process had; rusage counts what its parent had, too."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def fuzz(seconds, first, names):
    records = Records()
    log = logging.getLogger("agentlace")
    log.addHandler(records)
    log.propagate = False
    watch_threads(records)
    counts = {}
    with contextlib.ExitStack() as stack:
        embedded = stack.enter_context(EmbeddedBroker(Settings(port=free_port(), maxmemory="1gb")))
        world = stack.enter_context(targets.World(str(embedded.settings.url), records))
        kinds = [targets.Decoder(), targets.Requests(world), targets.Streams(world)]
        kinds += [targets.Presence(world), targets.Weights(world), targets.Broadcast(world)]
        kinds = [kind for kind in kinds if not names or type(kind).__name__ in names]
        end, number = time.monotonic() + seconds, first
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes()[0] + EXTRA_BYTES,) * 2)
        warm, peak = None, 0
        while time.monotonic() < end:
            for target in kinds:
                faulthandler.dump_traceback_later(HANG_S, exit=True)
                name = type(target).__name__
                try:
                    run_round(target, number)
                    assert not records.unexpected, "\n".join(records.unexpected)
                except BaseException:
                    print(f"{name} failed: --seed {number} --only {name}", flush=True)
                    raise
                counts[name] = counts.get(name, 0) + ROUND[name]
                now = peak_bytes() >> 20
                if now > peak + 64:
                    print(f"{now} MiB after {name} --seed {number}", flush=True)
                peak = max(peak, now)
            number += 1
            if warm is None:
                warm = size_bytes()[1]
    faulthandler.cancel_dump_traceback_later()
    grown = peak_bytes() - warm
    assert grown < GROWTH_BYTES, f"{grown >> 20} MiB more than after the first round"
    return {
        "examples": counts,
        "total": sum(counts.values()),
        "seeds": [first, number - 1],
        "grown_mib": grown >> 20,
        "log_lines": records.lines,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed}", flush=True)
    print(json.dumps(fuzz(arguments.seconds, arguments.seed, arguments.only)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
