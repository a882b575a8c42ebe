"""The client of a policy elsewhere, over a real broker and server."""

import threading

import numpy as np
import pytest

from agentlace import Closed, InferenceClient, InferenceServer, RemoteError, SchemaMismatch
from agentlace.errors import UnknownRequest
from agentlace.robot import ChunkedPolicyClient

from ..services.support import wait_until

CHUNK = 20


class Policy:
    """Answers with the numbers of the ticks; waits while the gate is closed."""

    def __init__(self):
        self.gate, self.seen = threading.Event(), []
        self.gate.set()

    def __call__(self, observation):
        assert self.gate.wait(20)
        self.seen.append(int(observation["tick"][0]))
        return {"actions": observation["tick"] + np.arange(CHUNK, dtype=np.float32)}


@pytest.fixture
def policy(broker_url):
    policy = Policy()
    with InferenceServer(5600, broker=broker_url) as server:
        server.register_interface("policy", policy)
        server.register_interface("bare", lambda tick: np.asarray(tick) + np.arange(3.0))
        server.register_interface("broken", lambda _: 1 / 0)
        server.register_interface("none", lambda _: "nothing")
        server.start(threaded=True)
        yield policy
        policy.gate.set()


@pytest.fixture
def client(policy, broker_url):
    with InferenceClient("localhost", 5600, timeout_ms=15000, broker=broker_url) as client:
        yield client


def observation(tick):
    return {"tick": np.array([tick], np.float32)}


def test_every_tick_gets_its_own_action_while_chunks_are_asked_for(client, policy):
    with ChunkedPolicyClient(client, "policy", CHUNK, replan=2) as robot:
        reused = observation(0)  # a control loop may write each observation into the same array
        for tick in range(100):
            reused["tick"][0] = tick
            # The loop of this test has no clock: it goes on when what was asked for has come.
            wait_until(lambda: robot._schedule.in_flight == 0)
            assert robot.step(reused) == tick
        assert robot.underruns == 0 and robot.ticks == 100
        assert robot.latency_s > 0 and robot.last_error is None
        assert policy.seen == sorted(set(policy.seen) | {0}) or policy.seen[:2] == [0, 0]
        assert 5 <= len(policy.seen) <= 60


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [("hold", CHUNK - 1), ("zero", 0), (lambda seen, tick: 1000 + tick, 1000 + CHUNK)],
)
def test_a_policy_that_stalls_gives_way_to_what_was_declared(client, policy, fallback, expected):
    with ChunkedPolicyClient(client, "policy", CHUNK, on_underrun=fallback) as robot:
        robot.start(observation(0))
        policy.gate.clear()
        actions = [robot.step(observation(tick)) for tick in range(CHUNK + 5)]
        assert actions[:CHUNK] == list(range(CHUNK)) and robot.underruns == 5
        assert actions[CHUNK] == expected
        policy.gate.set()
        ticks = iter(range(CHUNK + 5, 10**6))
        wait_until(lambda: robot.step(observation(tick := next(ticks))) == tick)


def test_errors_are_told_and_do_not_stop_the_loop(client, policy, caplog):
    with ChunkedPolicyClient(client, "nobody", 5) as robot, pytest.raises(UnknownRequest):
        robot.step(observation(0))
    with ChunkedPolicyClient(client, "broken", 5) as robot, pytest.raises(RemoteError):
        robot.start(observation(0))
    with ChunkedPolicyClient(client, "none", 5) as robot, pytest.raises(SchemaMismatch):
        robot.start(observation(0))
    with ChunkedPolicyClient(client, "broken", 3, on_underrun=lambda *_: 7) as robot:
        robot._plan.add(0, np.arange(3.0))
        wait_until(lambda: robot.step(0.0) == 7 and robot.last_error)
        assert isinstance(robot.last_error, RemoteError)
    assert "no actions from 'broken'" in caplog.text


def test_bare_actions(client, policy):
    with ChunkedPolicyClient(client, "bare", 3, replan=1) as robot:
        assert robot.step(0.0) == 0.0


def test_after_stop(client, policy):
    robot = ChunkedPolicyClient(client, "policy", CHUNK)
    robot.step(observation(0))
    robot.stop()
    robot.stop()
    with pytest.raises(Closed):
        robot.step(observation(1))
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("ask policy")])
    assert client.interfaces()  # the client is the caller's


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"replan": 0}, "replan=0"),
        ({"replan": 6}, "replan=6"),
        ({"rate_hz": 0}, "rate_hz"),
        ({"on_underrun": "jump"}, "on_underrun"),
    ],
)
def test_wrong_arguments(client, wrong, text):
    with pytest.raises(ValueError, match=text):
        ChunkedPolicyClient(client, "policy", 5, **wrong)
