"""A Gymnasium environment behind the broker."""

import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from agentlace import Closed, EncodeError, RemoteError
from agentlace.config import BrokerURL

from .support import InThread, Log, LossyProxy, assert_same, holds_for, stay_on_tcp, wait_until

gym = pytest.importorskip("gymnasium")
spaces = gym.spaces

from gymnasium.utils.env_checker import check_env  # noqa: E402

from agentlace.gym_env import (  # noqa: E402
    DefaultActionConfig,
    GymEnvClient,
    GymEnvServerWrapper,
)


class Room(gym.Env):
    """A small deterministic world that counts what is done to it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-10, 10, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.actions, self.options = Log(), Log()
        self.wait_at_reset, self.wait_at_step = threading.Event(), threading.Event()
        self.wait_at_reset.set()
        self.wait_at_step.set()
        self.closed = 0

    def _obs(self):
        return self.place.astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert self.wait_at_reset.wait(20)
        self.options(options)
        self.place = self.np_random.normal(size=3)
        return self._obs(), {"seed": seed}

    def step(self, action):
        self.actions(np.array(action))
        assert self.wait_at_step.wait(20)
        if not np.all(np.isfinite(action)):
            raise ValueError("the arm cannot go there")
        self.place[:2] += action
        far = bool(np.abs(self.place).max() > 5)
        return self._obs(), float(self.place.sum()), far, False, {"n": len(self.actions)}

    def render(self):
        if self.render_mode == "rgb_array":
            return np.full((48, 64, 3), len(self.actions), np.uint8)
        return None

    def close(self):
        self.closed += 1


@pytest.fixture
def serve(running, any_broker_url):
    def serve(env, **kwargs):
        server = GymEnvServerWrapper(env, broker=any_broker_url, **kwargs)
        server.start(threaded=True)
        running(_stopping(server))
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(url=any_broker_url, **kwargs):
        client = GymEnvClient(broker=url, **{"retry_interval": 0.02, **kwargs})
        running(_stopping(client._client))
        return client

    return connect


class _stopping:
    def __init__(self, thing):
        self._thing = thing

    def __enter__(self):
        return self._thing

    def __exit__(self, *_):
        self._thing.stop()


# -- it is an environment --------------------------------------------------------------------------


def test_gymnasiums_own_checker_passes_without_a_warning(serve, connect, monkeypatch):
    class Repeatable(Room):
        def step(self, action):
            return (*super().step(action)[:4], {})

    serve(Repeatable("rgb_array"))
    client = connect(timeout_ms=5000)
    assert isinstance(client, gym.Env)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        messages = Log()
        monkeypatch.setattr(gym.logger, "warn", lambda text, *args, **_: messages(text % args))
        check_env(client)
    known = "alternative render modes"  # it has no spec: gymnasium.make cannot make it
    assert not [str(w.message) for w in caught if known not in str(w.message)]
    assert not [text for text in messages if known not in text]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_it_is_the_same_environment_as_the_local_one(serve, connect, name):
    serve(gym.make(name))
    remote, local = connect(timeout_ms=5000), gym.make(name)
    assert remote.observation_space == local.observation_space
    assert remote.action_space == local.action_space
    assert remote.metadata == local.metadata
    local.action_space.seed(0)
    for seed in (1, 2):
        assert_same(remote.reset(seed=seed), local.reset(seed=seed))
        for _ in range(20):
            action = local.action_space.sample()
            expected = local.step(action)
            assert_same(remote.step(action), expected)
            if expected[2]:
                break
    remote.close()


SPACES = [
    spaces.Dict(
        {
            "wrist": spaces.Box(0, 255, (1, 32, 32, 3), np.uint8),
            "state": spaces.Dict({"pose": spaces.Box(-1, 1, (6,)), "gripper": spaces.Discrete(2)}),
        }
    ),
    spaces.Tuple((spaces.Discrete(5, start=-2), spaces.MultiBinary(3))),
    spaces.Text(12, charset="abc "),
    spaces.MultiDiscrete([3, 4]),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_composite_and_text_spaces_travel_both_ways(serve, connect, space):
    class Echo(Room):
        observation_space = action_space = space

        def reset(self, *, seed=None, options=None):
            space.seed(seed)
            return space.sample(), {}

        def step(self, action):
            assert space.contains(action)
            return action, 0.0, False, False, {}

    serve(Echo())
    client = connect(timeout_ms=5000)
    assert client.observation_space == client.action_space == space
    observation, _ = client.reset(seed=3)
    assert client.observation_space.contains(observation)
    client.action_space.seed(4)
    for _ in range(3):
        action = client.action_space.sample()
        assert_same(_plain(client.step(action)[0]), _plain(action))


def _plain(value):
    """Turn an OrderedDict, as older Gymnasium samples it, into a dict."""
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_reset_passes_seed_and_options(serve, connect):
    env = Room()
    serve(env)
    client = connect(timeout_ms=5000)
    first, info = client.reset(seed=7, options={"goal": np.ones(2), "task": "lift"})
    assert info == {"seed": 7}
    assert_same(env.options[0], {"goal": np.ones(2), "task": "lift"})
    assert np.array_equal(client.reset(seed=7)[0], first)
    assert not np.array_equal(client.reset()[0], first)


def test_render_gives_the_remote_picture(serve, connect):
    serve(Room("rgb_array"))
    client = connect(timeout_ms=5000)
    assert client.render_mode == "rgb_array" and client.metadata["render_fps"] == 10
    client.reset()
    client.step(np.zeros(2, np.float32))
    assert_same(client.render(), np.full((48, 64, 3), 1, np.uint8))


def test_render_may_give_nothing(serve, connect):
    serve(Room())
    client = connect(timeout_ms=5000)
    assert client.render_mode is None
    assert client.render() is None


def test_the_wrapper_still_steps_locally(serve):
    server = serve(Room())
    server.reset(seed=0)
    assert len(server.step(np.zeros(2))) == 5
    assert isinstance(server, gym.Wrapper)


# -- what can go wrong -----------------------------------------------------------------------------


def test_a_reset_longer_than_the_timeout_is_waited_for_and_done_once(serve, connect):
    env = Room()
    serve(env)
    client = connect(timeout_ms=50)
    env.wait_at_reset.clear()
    resetting = InThread(lambda: client.reset(seed=1))
    holds_for(lambda: resetting.is_running, 0.4)
    env.wait_at_reset.set()
    observation, info = resetting.result()
    assert observation.shape == (3,) and info == {"seed": 1}
    assert env.options == [None]


def test_a_step_longer_than_the_timeout_is_executed_once(serve, connect):
    env = Room()
    serve(env)
    client = connect(timeout_ms=50)
    client.reset()
    env.wait_at_step.clear()
    stepping = InThread(lambda: client.step(np.full(2, 0.5, np.float32)))
    wait_until(lambda: env.actions)
    holds_for(lambda: stepping.is_running, 0.3)
    env.wait_at_step.set()
    assert stepping.result()[4] == {"n": 1}
    assert client.step(np.zeros(2, np.float32))[4] == {"n": 2}
    assert len(env.actions) == 2


@pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)
def test_steps_are_executed_once_though_replies_are_lost(
    serve, connect, any_broker_url, namespace, monkeypatch
):
    env = Room()
    serve(env)
    stay_on_tcp(monkeypatch)
    with LossyProxy(BrokerURL.parse(any_broker_url).port) as proxy:
        client = connect(f"redis://127.0.0.1:{proxy.port}?ns={namespace}", timeout_ms=100)
        client.reset(seed=0)
        for number in range(1, 6):
            proxy.deaf.set()
            stepping = InThread(lambda n=number: client.step(np.full(2, n / 10, np.float32)))
            wait_until(lambda n=number: len(env.actions) == n)
            holds_for(lambda s=stepping: s.is_running, 0.15)
            proxy.cut()
            proxy.deaf.clear()
            assert stepping.result()[4] == {"n": number}
    assert [round(float(a[0]), 1) for a in env.actions] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_an_error_of_the_environment_surfaces_and_it_goes_on(serve, connect):
    env = Room()
    serve(env)
    client = connect(timeout_ms=5000)
    client.reset(seed=0)
    with pytest.raises(RemoteError, match="the arm cannot go there") as caught:
        client.step(np.full(2, np.nan, np.float32))
    assert caught.value.type == "ValueError"
    assert client.step(np.zeros(2, np.float32))[4] == {"n": 2}


def test_an_action_that_may_not_travel_raises(serve, connect):
    serve(Room())
    client = connect(timeout_ms=5000)
    client.reset()
    with pytest.raises(EncodeError):
        client.step(object())


def test_close_closes_the_remote_environment_once(serve, connect):
    env = Room()
    serve(env)
    client = connect(timeout_ms=5000)
    client.reset()
    client.close()
    client.close()
    assert env.closed == 1
    with pytest.raises(Closed):
        client.step(np.zeros(2, np.float32))
    with pytest.raises(Closed):
        client.reset()


def test_a_client_waits_while_the_server_is_away_and_close_ends_the_wait(serve, connect):
    env = Room()
    server = serve(env)
    client = connect(timeout_ms=50)
    client.reset()
    server.stop()
    stepping = InThread(lambda: client.step(np.zeros(2, np.float32)))
    holds_for(lambda: stepping.is_running, 0.3)
    client.close()
    with pytest.raises(Closed):
        stepping.result(timeout_s=5)
    assert not env.actions


def test_a_restarted_server_is_found_again(serve, connect):
    env = Room()
    server = serve(env)
    client = connect(timeout_ms=500)
    client.reset(seed=0)
    server.stop()
    server.start(threaded=True)
    assert client.reset(seed=1)[1] == {"seed": 1}


def test_a_client_that_cannot_be_made_leaves_nothing_behind(serve, any_broker_url):
    class Odd(spaces.Space):
        """A space of a user's own cannot be sent."""

    class Env(Room):
        observation_space = Odd((1,), np.float32)

    serve(Env())
    before = threading.active_count()
    with pytest.raises(RemoteError, match="Odd"):
        GymEnvClient(broker=any_broker_url)
    wait_until(lambda: threading.active_count() <= before)


def test_several_environments_by_port(serve, connect):
    envs = {port: Room() for port in (5546, 5600)}
    for port, env in envs.items():
        serve(env, port=port)
    for n, port in enumerate(envs):
        client = connect(port=port, timeout_ms=5000)
        client.reset()
        client.step(np.full(2, n / 10, np.float32))
    assert [len(env.actions) for env in envs.values()] == [1, 1]
    assert DefaultActionConfig.port_number == 5546


def test_without_gymnasium_the_import_names_the_extra():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import agentlace\n"
        "try: import agentlace.gym_env\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "agentlace[gym]" in done.stdout, done.stderr
