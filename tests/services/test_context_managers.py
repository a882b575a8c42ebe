"""Everything public that is to be stopped or closed is a context manager."""

import importlib
import inspect

import numpy as np
import pytest

import agentlace
from agentlace import ActionServer, Closed, TrainerSMInterface
from agentlace.data.rlds_writer import RLDSWriter
from agentlace.rlds.reader import DatasetReader

PLACES = (
    "agentlace",
    "agentlace.data",
    "agentlace.data.rlds_writer",
    "agentlace.gym_env",
    "agentlace.recorder",
    "agentlace.rlds",
    "agentlace.robot",
    "agentlace.transport.embedded",
    "agentlace.vector_env",
)


def public_classes():
    for place in PLACES:
        module = importlib.import_module(place)
        for name in getattr(module, "__all__", dir(module)):
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__.startswith("agentlace"):
                yield found
    for name in agentlace._NEED_GYMNASIUM:
        if inspect.isclass(found := getattr(agentlace, name)):
            yield found


def test_whatever_has_an_end_is_a_context_manager():
    pytest.importorskip("gymnasium", reason="needs the extra 'gym'")
    ending = {c for c in public_classes() if hasattr(c, "stop") or hasattr(c, "close")}
    assert {"TrainerClient", "RLDSWriter", "Prefetch", "RemoteVectorEnv"} <= {
        found.__name__ for found in ending
    }
    missing = {c.__name__ for c in ending if not (hasattr(c, "__enter__") and c.__exit__)}
    assert not missing


def test_an_environments_server_ends_with_its_block(broker_url):
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra 'gym'")
    from agentlace.gym_env import GymEnvServerWrapper

    with GymEnvServerWrapper(gymnasium.make("CartPole-v1"), broker=broker_url) as env:
        env.start(threaded=True)
        server = env._server
        assert server.is_running
    assert not server.is_running


def test_a_vector_environment_ends_with_its_block(broker_url):
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra 'gym'")
    from agentlace import GymEnvServerWrapper, RemoteVectorEnv

    with GymEnvServerWrapper(gymnasium.make("CartPole-v1"), 5546, broker_url) as env:
        env.start(threaded=True)
        with RemoteVectorEnv([5546], client={"broker": broker_url}) as envs:
            assert envs.reset(seed=0)[0].shape == (1, 4)
            (remote,) = envs._remotes
        with pytest.raises(Closed):
            remote.client.reset()


def test_one_process_for_both_ends_is_one_too():
    with TrainerSMInterface() as both:
        assert both.publish_network({"w": np.zeros(1)}) == 1


def test_a_writer_ends_open_episodes_with_its_block(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra 'rlds'")
    with RLDSWriter("demo", None, tmp_path, "1.0.0") as writer:
        row = {"observations": np.zeros(2, np.float32), "actions": np.zeros(1, np.float32)}
        writer.add_transition({**row, "next_observations": np.ones(2, np.float32), "rewards": 1.0})
    with pytest.raises(Closed):
        writer.flush()
    (episode,) = DatasetReader(tmp_path).episodes()
    assert episode.ending == "aborted"


def test_a_server_that_was_not_started_is_left_quietly(broker_url):
    with ActionServer(
        agentlace.ActionConfig(5590, [], []), None, None, broker=broker_url
    ) as server:
        assert not server.is_running
