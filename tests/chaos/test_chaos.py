"""Everything is killed, frozen, cut off, delayed and filled up; what was promised holds.

A schedule is drawn from its seed, which is a part of the test's name. Environment:

AGENTLACE_CHAOS_SEED       one seed, to have its schedule again
AGENTLACE_CHAOS_SCHEDULES  so many schedules of random seeds (`make chaos`)
AGENTLACE_CHAOS_STEPS      so many faults, or pairs of them, in each
"""

import os
import random
import re

import pytest

from . import checks
from .schedule import draw_steps, play
from .system import System

SEEDS, FEW = (20, 42, 257), 6
"""Together they do everything that can be done."""
STEPS = int(os.environ.get("AGENTLACE_CHAOS_STEPS", FEW))


def seeds():
    if seed := os.environ.get("AGENTLACE_CHAOS_SEED"):
        return [int(seed)]
    if count := os.environ.get("AGENTLACE_CHAOS_SCHEDULES"):
        return [random.randrange(10**6) for _ in range(int(count))]
    return SEEDS


def mode_of(seed):
    return "always" if seed % 3 == 0 else "everysec"


def test_the_few_schedules_do_everything():
    """Whatever hundreds of others do, up to numbers."""

    def done(seeds, steps):
        faults = [
            str(fault)
            for seed in seeds
            for _, together in draw_steps(seed, steps, mode_of(seed))
            for fault in together
        ]
        return {re.sub(r"[\d.]+ s\b", "some", fault) for fault in faults}

    assert {mode_of(seed) for seed in SEEDS} == {"always", "everysec"}
    assert done(SEEDS, FEW) == done(range(300), 20)


@pytest.mark.timeout(300 + 10 * STEPS)
@pytest.mark.parametrize("seed", seeds())
def test_what_was_promised_holds(tmp_path, unused_port, seed):
    appendfsync = mode_of(seed)
    print(f"AGENTLACE_CHAOS_SEED={seed} AGENTLACE_CHAOS_STEPS={STEPS} ({appendfsync})")
    said = []

    def say(text):
        print(text)
        said.append(text)

    with System(tmp_path, unused_port, appendfsync) as system:
        try:
            play(system, seed, STEPS, appendfsync, say)
            system.finish(say)
            checks.check_transitions(tmp_path, is_trimmed=any("fill memory" in s for s in said))
            checks.check_networks(tmp_path)
            checks.check_acts(tmp_path)
        except BaseException:
            print(system.tell())
            raise
