"""Remote environments as one vector environment, against SyncVectorEnv over local copies."""

import threading
from functools import partial

import numpy as np
import pytest

from agentlace import RemoteError
from agentlace.config import BrokerURL

from .support import assert_same as assert_same_tree

gym = pytest.importorskip("gymnasium")
spaces = gym.spaces

from agentlace.gym_env import GymEnvServerWrapper  # noqa: E402
from agentlace.vector_env import RemoteVectorEnv  # noqa: E402

try:
    MODES = [{"autoreset_mode": mode} for mode in gym.vector.AutoresetMode]
except AttributeError:  # an older Gymnasium has one mode only
    MODES = [{}]
N = 3


class Walk(gym.Env):
    """A walk of nested observations that ends or is cut at times that depend on its seed."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(-np.inf, np.inf, (2,), np.float32), "floor": spaces.Discrete(5)}
    )
    action_space = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)))

    def _seen(self):
        return {"place": self.place.copy(), "floor": np.int64(self.steps % 5)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.limit = 0, int(self.np_random.integers(2, 9))
        self.place = self.np_random.normal(size=2).astype(np.float32)
        return self._seen(), {"limit": self.limit, "told": str(options)}

    def step(self, action):
        move, floor = action
        if not np.isfinite(move).all():
            raise ValueError("cannot go there")
        self.steps += 1
        self.place = self.place + np.float32(0.1) * move + np.float32(floor)
        ended = bool(self.np_random.random() < 0.1)
        cut = self.steps >= self.limit
        return self._seen(), float(self.place.sum()), ended, cut, {"steps": self.steps}


@pytest.fixture
def served(running, broker_url):
    """Serve environments that a function makes; return the ports."""

    def serve(make):
        for i in range(N):
            server = GymEnvServerWrapper(make(), 7000 + 2 * i, broker=BrokerURL.parse(broker_url))
            server.start(threaded=True)
            running(_stopped(server))
        return [7000 + 2 * i for i in range(N)]

    return serve


class _stopped:
    def __init__(self, server):
        self.server = server

    def __enter__(self):
        return self.server

    def __exit__(self, *_):
        self.server.stop()


def connected(ports, broker_url, **how):
    return RemoteVectorEnv(ports, client={"broker": broker_url, "timeout_ms": 5000}, **how)


def assert_same(found, expected):
    """Compare, also infos: an object array holds a final observation of each environment."""
    assert_same_tree(plain(found), plain(expected))


def plain(tree):
    if isinstance(tree, np.ndarray) and tree.dtype == object:
        return [plain(item) for item in tree]
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return tuple(map(plain, tree)) if isinstance(tree, tuple) else tree


def play(env, other, steps):
    """Do the same in both, and compare all that comes back."""
    assert_same(env.reset(seed=3), other.reset(seed=3))
    env.action_space.seed(1)
    ends = 0
    for _ in range(steps):
        actions = env.action_space.sample()
        found, expected = env.step(actions), other.step(actions)
        assert_same(found, expected)
        ends += int(np.sum(found[2] | found[3]))
        over = found[2] | found[3]
        if over.any() and env.metadata.get("autoreset_mode", None) in DISABLED:
            mask = {"reset_mask": over}
            assert_same(env.reset(options={**mask}), other.reset(options={**mask}))
    return ends


DISABLED = [how["autoreset_mode"] for how in MODES if str(how).count("DISABLED")]


@pytest.mark.parametrize("how", MODES, ids=str)
def test_it_is_what_a_local_vector_environment_is_step_by_step(served, broker_url, how):
    local = gym.vector.SyncVectorEnv([Walk] * N, **how)
    remote = connected(served(Walk), broker_url, **how)
    assert remote.single_observation_space == local.single_observation_space
    assert remote.observation_space == local.observation_space
    assert remote.action_space == local.action_space
    assert play(remote, local, 60) > 20
    assert_same(
        remote.reset(seed=[5, 6, 7], options={"a": 1}),
        local.reset(seed=[5, 6, 7], options={"a": 1}),
    )
    remote.close()
    remote.close()


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_known_environments(served, broker_url, name):
    local = gym.vector.SyncVectorEnv([partial(gym.make, name)] * N)
    remote = connected(served(partial(gym.make, name)), broker_url)
    play(remote, local, 100)
    remote.close()


def test_all_of_them_step_at_the_same_time(served, broker_url):
    together = threading.Barrier(N)

    class Meeting(Walk):
        def step(self, action):
            together.wait(20)
            return (*super().step(action)[:2], False, False, {})

        def reset(self, **kwargs):
            together.wait(20)
            return super().reset(**kwargs)

    remote = connected(served(Meeting), broker_url)
    remote.reset(seed=1)
    for _ in range(3):
        remote.step(remote.action_space.sample())
    together.abort()
    remote.close()


def test_an_error_in_one_is_raised_and_a_reset_goes_on(served, broker_url):
    remote = connected(served(Walk), broker_url)
    remote.reset(seed=1)
    moves, floors = remote.action_space.sample()
    bad = np.array(moves)
    bad[1] = np.nan
    with pytest.raises(RemoteError, match="cannot go there"):
        remote.step((bad, floors))
    local = gym.vector.SyncVectorEnv([Walk] * N)
    assert play(remote, local, 20)
    remote.close()


def test_wrong_arguments(served, broker_url):
    with pytest.raises(ValueError, match="each once"):
        RemoteVectorEnv([7000, 7000])
    with pytest.raises(ValueError, match="each once"):
        RemoteVectorEnv([])
    remote = connected(served(Walk), broker_url)
    with pytest.raises((ValueError, AssertionError)):
        remote.reset(seed=[1, 2])
    remote.close()
    threads = [t.name for t in threading.enumerate() if t.name.startswith("remote env")]
    assert not threads
