"""Which control ticks have no action, in virtual time: latency, jitter, drops, slow servers."""

import heapq

import numpy as np
import pytest

from agentlace.robot import Latest
from agentlace.robot.plan import ActionPlan
from agentlace.robot.schedule import Schedule

PERIOD_S = 0.02


class World:
    """A control loop, a network with a delay, and a policy that takes time; a clock of its own.

    Args:
        delay_s: returns how long a request is on its way, both ways together; None if it is lost.
        compute_s: of each call at the server, which answers one after the other.
    """

    def __init__(self, chunk, replan, delay_s, compute_s=0.0, patience=3.0):
        self.schedule = Schedule(chunk, replan, PERIOD_S)
        self.plan = ActionPlan(Latest())
        self.chunk, self.delay_s, self.compute_s, self.patience = (
            chunk,
            delay_s,
            compute_s,
            patience,
        )
        self.plan.add(0, np.arange(chunk))
        self.schedule.measured((delay_s() or 0.1) + compute_s)
        self.arrivals, self.server_free_s, self.asked = [], 0.0, 0

    def run(self, ticks):
        """Return the ticks without an action."""
        return [tick for tick in range(ticks) if not self.step(tick)]

    def step(self, tick):
        now_s = tick * PERIOD_S
        while self.arrivals and self.arrivals[0][0] <= now_s:
            at_s, number, asked_tick, has_come = heapq.heappop(self.arrivals)
            self.schedule.answered(number, at_s, has_come)
            if has_come:
                self.plan.add(asked_tick, np.arange(asked_tick, asked_tick + self.chunk))
        if self.schedule.is_due(tick, now_s, self.plan.end):
            self.ask(tick, now_s)
        action = self.plan.at(tick)
        assert action is None or action == tick, "an action for another tick"
        return action is not None

    def ask(self, tick, now_s):
        self.asked += 1
        number = self.schedule.asked(tick, now_s)
        delay_s = self.delay_s()
        if delay_s is None:
            patience_s = self.patience * (self.schedule.latency_s or 0.2) + 0.05
            heapq.heappush(self.arrivals, (now_s + patience_s, number, tick, False))
            return
        begin_s = max(now_s + delay_s / 2, self.server_free_s)
        self.server_free_s = begin_s + self.compute_s
        heapq.heappush(self.arrivals, (self.server_free_s + delay_s / 2, number, tick, True))


@pytest.mark.parametrize("latency_ms", [20, 50, 100, 150, 200, 300, 400, 500])
@pytest.mark.parametrize("chunk", [8, 16, 32, 64])
def test_no_tick_is_without_action_where_the_latency_is_shorter_than_a_chunk(latency_ms, chunk):
    world = World(chunk, max(1, chunk // 2), lambda: latency_ms / 1000)
    missed = world.run(3000)
    if latency_ms / 1000 < (chunk - 2) * PERIOD_S:
        assert missed == []
    elif latency_ms / 1000 >= chunk * PERIOD_S:
        assert len(missed) > 2000  # every chunk is stale when it comes: the fallback is declared


@pytest.mark.parametrize("seed", range(40))
def test_with_jitter_as_well(seed):
    rng = np.random.default_rng(seed)
    latency_s, jitter, spare = rng.uniform(0.02, 0.5), rng.random(), int(rng.integers(3, 60))
    longest_s = latency_s * (1 + jitter)
    chunk = int(longest_s / PERIOD_S) + spare
    replan = int(rng.integers(1, chunk + 1))
    world = World(chunk, replan, lambda: latency_s * (1 + jitter * rng.random()))
    missed = world.run(2000)
    # What has not been seen cannot be planned for: the longest latency is, from then on.
    assert len(missed) <= 40
    if longest_s < 0.5 * chunk * PERIOD_S:
        assert missed == []


@pytest.mark.parametrize("latency_ms", [20, 100, 300, 500])
def test_lost_requests_are_bridged_by_a_chunk_that_is_long_enough(latency_ms):
    rng = np.random.default_rng(latency_ms)
    chunk = 4 + int(5.5 * latency_ms / 1000 / PERIOD_S) + 4

    def delay_s():
        return None if rng.random() < 0.1 else latency_ms / 1000

    missed = World(chunk, max(1, chunk // 4), delay_s).run(5000)
    assert len(missed) <= 25  # of 5000: only where several are lost one after the other


@pytest.mark.parametrize("compute_ms", [20, 100, 300])
def test_a_server_that_answers_one_after_the_other_is_not_flooded(compute_ms):
    chunk = int(2.2 * compute_ms / 1000 / PERIOD_S) + 4
    world = World(chunk, chunk // 2, lambda: 0.002, compute_ms / 1000)
    missed = world.run(5000)
    assert [tick for tick in missed if tick > 1000] == []
    latency_s = world.schedule.latency_s
    assert latency_s < 3.2 * compute_ms / 1000 + 0.01


def test_it_asks_no_more_often_than_it_must():
    world = World(50, 25, lambda: 0.1)
    world.run(1000)
    assert world.asked <= 1000 / 25 + 3


def test_the_newest_observation_is_in_use_where_that_is_wanted():
    world = World(50, 1, lambda: 0.06)
    world.run(1000)
    assert world.asked >= 1000 / (0.06 / PERIOD_S + 1)
