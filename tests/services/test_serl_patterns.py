"""The ways in which SERL, HIL-SERL and Manipulator Gym use the library, with small stand-ins."""

import copy
import itertools
import threading
from collections import OrderedDict, defaultdict
from threading import Lock

import numpy as np
import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.data.data_store import DataStoreBase, QueuedDataStore
from agentlace.internal import utils
from agentlace.trainer import TrainerClient, TrainerConfig, TrainerServer

from .support import InThread, Log, Program, assert_same, wait_until

CAMERAS = ("side", "wrist_1", "wrist_2")


def make_trainer_config(port_number=5588, broadcast_port=5589):
    return TrainerConfig(
        port_number=port_number, broadcast_port=broadcast_port, request_types=["send-stats"]
    )


@pytest.fixture(autouse=True)
def _broker_of_the_environment(any_broker_url, monkeypatch):
    """Existing programs name no broker."""
    monkeypatch.setenv("AGENTLACE_BROKER", any_broker_url)


# -- stand-ins -------------------------------------------------------------------------------------


class ImageBuffer:
    """A replay buffer as users write them: preallocated, filled in place, keys taken out."""

    def __init__(self, capacity):
        self.images = {key: np.zeros((capacity, 128, 128, 3), np.uint8) for key in CAMERAS}
        self.next_images = copy.deepcopy(self.images)
        self.state = np.zeros((capacity, 19), np.float32)
        self.actions = np.zeros((capacity, 7), np.float32)
        self.rewards = np.zeros(capacity, np.float32)
        self.masks = np.zeros(capacity, np.float32)
        self.dones = np.zeros(capacity, bool)
        self.size = 0

    def __len__(self):
        return self.size

    def insert(self, data):
        data = data.copy()
        observations = data["observations"].copy()
        at = self.size
        for key in CAMERAS:
            self.images[key][at] = observations.pop(key)[-1]
            self.next_images[key][at] = data["next_observations"][key][-1]
        assert [*observations] == ["state"]
        self.state[at] = observations["state"]
        for key in ("actions", "rewards", "masks", "dones"):
            getattr(self, key)[at] = data[key]
        self.size += 1

    def sample(self, batch_size):
        assert self.size
        return self.state[np.random.default_rng(0).integers(self.size, size=batch_size)]


class ImageDataStore(ImageBuffer, DataStoreBase):
    def __init__(self, capacity):
        ImageBuffer.__init__(self, capacity)
        DataStoreBase.__init__(self, capacity)
        self._lock = Lock()

    def insert(self, *args, **kwargs):
        with self._lock:
            super().insert(*args, **kwargs)

    def sample(self, *args, **kwargs):
        with self._lock:
            return super().sample(*args, **kwargs)

    def latest_data_id(self):
        return self.size

    def get_latest_data(self, from_id):
        raise NotImplementedError


class Robot:
    """Images, a pose, an operator who intervenes, and statistics at each episode's end."""

    def __init__(self, length=8, mapping=dict):
        self.length, self.mapping, self.t = length, mapping, 0
        self.rng = np.random.default_rng(0)

    def _obs(self):
        images = {key: self.rng.integers(0, 255, (1, 128, 128, 3), np.uint8) for key in CAMERAS}
        state = self.rng.normal(size=(1, 19)).astype(np.float32)
        return self.mapping({"state": state, **images})

    def reset(self):
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        done = self.t == self.length
        info = {"succeed": np.bool_(done)}
        if 2 <= self.t < 5:
            info["intervene_action"] = np.ones(7)
        if done:
            info["episode"] = {"r": np.float64(1), "l": np.int32(self.t), "t": 0.25}
        return self._obs(), int(done), done, False, info


@pytest.fixture(scope="module")
def flax():
    return pytest.importorskip("flax")


def make_agent(flax, frozen, seed=0):
    """Return an agent with a real train state; its policy maps a state to an action."""
    import jax
    import optax
    from flax.training.train_state import TrainState

    model = flax.linen.Dense(7)
    params = model.init(jax.random.PRNGKey(seed), np.zeros((1, 19)))["params"]
    params = {"modules_actor": params, "modules_temperature": {"lagrange": jax.numpy.ones(())}}
    params = flax.core.freeze(params) if frozen else params

    class Agent(flax.struct.PyTreeNode):
        state: TrainState

        def act(self, obs):
            weights = self.state.params["modules_actor"]
            return np.asarray(self.state.apply_fn({"params": weights}, obs["state"]))[0]

    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.1))
    return Agent(state=state)


def learn(agent):
    import jax

    ones = jax.tree_util.tree_map(np.ones_like, agent.state.params)
    return agent.replace(state=agent.state.apply_gradients(grads=ones))


# -- HIL-SERL --------------------------------------------------------------------------------------


def run_actor(agent, env, stores, episodes, sent):
    client = TrainerClient(
        "actor_env",
        "localhost",
        make_trainer_config(),
        data_stores=stores,
        wait_for_server=True,
        timeout_ms=3000,
    )
    versions = Log()

    def update_params(params):
        nonlocal agent
        agent = agent.replace(state=agent.state.replace(params=params))
        versions(float(params["modules_temperature"]["lagrange"]))

    client.recv_network_callback(update_params)
    obs, _ = env.reset()
    while episodes:
        actions = agent.act(obs)
        next_obs, reward, done, truncated, info = env.step(actions)
        intervened = "intervene_action" in info
        if intervened:
            actions = info.pop("intervene_action")
        transition = dict(
            observations=obs,
            actions=actions,
            next_observations=next_obs,
            rewards=reward,
            masks=1.0 - done,
            dones=done,
        )
        stores["actor_env"].insert(transition)
        sent["actor_env"](copy.deepcopy(transition))
        if intervened:
            stores["actor_env_intvn"].insert(transition)
            sent["actor_env_intvn"](copy.deepcopy(transition))
        obs = next_obs
        if done or truncated:
            episodes -= 1
            info["episode"]["intervention_steps"] = 3
            assert client.request("send-stats", {"environment": info}) == {}
            assert client.update()
            obs, _ = env.reset()
    wait_until(lambda: versions and versions[-1] == pytest.approx(0, abs=1e-5))
    client.stop()
    return agent, versions


@pytest.mark.parametrize("frozen", [False, True], ids=["dict", "FrozenDict"])
@pytest.mark.parametrize("mapping", [dict, OrderedDict])
def test_hil_serls_actor_and_learner(running, flax, frozen, mapping):
    stats = Log()

    def stats_callback(type, payload):
        assert type == "send-stats"
        stats(payload)
        return {}

    server = running(TrainerServer(make_trainer_config(), request_callback=stats_callback))
    buffers = {"actor_env": ImageDataStore(100), "actor_env_intvn": ImageDataStore(100)}
    for name, buffer in buffers.items():
        server.register_data_store(name, buffer)
    server.start(threaded=True)

    sent = {name: Log() for name in buffers}
    stores = {name: QueuedDataStore(50_000) for name in buffers}
    agent = make_agent(flax, frozen)
    env = Robot(mapping=mapping)
    acting = InThread(lambda: run_actor(make_agent(flax, frozen, 1), env, stores, 4, sent))
    wait_until(lambda: len(buffers["actor_env"]) >= 8)
    server.publish_network(agent.state.params)
    for _ in range(10):
        buffers["actor_env"].sample(16)
        agent = learn(agent)
        server.publish_network(agent.state.params)

    actor, versions = acting.result()
    assert versions == sorted(versions, reverse=True)
    assert type(actor.state.params) is type(agent.state.params)
    assert_same(_numpy(actor.state.params), _numpy(agent.state.params))
    assert len(stats) == 4
    assert stats[0]["environment"]["succeed"] == np.True_
    assert_same(
        stats[0]["environment"]["episode"],
        {"r": np.float64(1), "l": np.int32(8), "t": 0.25, "intervention_steps": 3},
    )
    for name, n in (("actor_env", 32), ("actor_env_intvn", 12)):
        wait_until(lambda name=name, n=n: len(buffers[name]) == n)
        _check_buffer(buffers[name], sent[name])


def _numpy(params):
    import jax

    return jax.tree_util.tree_map(np.asarray, dict(params))


def _check_buffer(buffer, sent):
    for i, transition in enumerate(sent):
        for key in CAMERAS:
            assert np.array_equal(buffer.images[key][i], transition["observations"][key][0])
            assert np.array_equal(
                buffer.next_images[key][i], transition["next_observations"][key][0]
            )
        assert np.array_equal(buffer.state[i], transition["observations"]["state"][0])
        assert np.array_equal(buffer.actions[i], np.float32(transition["actions"]))
        assert buffer.rewards[i] == transition["rewards"] and buffer.dones[i] == transition["dones"]
        assert buffer.masks[i] == transition["masks"]


# -- SERL ------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(running):
    stats = Log()
    server = TrainerServer(make_trainer_config(), request_callback=lambda _, p: stats(p) or {})
    server.register_data_store("actor_env", QueuedDataStore(1000))
    running(server).start(threaded=True)
    server.stats = stats
    return server


@pytest.fixture
def client(running, trainer):
    store = QueuedDataStore(50_000)
    args = ("actor_env", "localhost", make_trainer_config(), store)
    client = running(TrainerClient(*args, wait_for_server=True))
    client.store = store
    return client


def test_serls_state_based_transitions(client, trainer):
    """Rewards are arrays without a dimension, masks floats, dones booleans of two kinds."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        done = (i % 10 == 9) if i < 15 else np.bool_(i % 10 == 9)
        row = dict(
            observations=rng.normal(size=17).astype(np.float32),
            actions=rng.normal(size=6).astype(np.float32),
            next_observations=np.asarray(rng.normal(size=17), dtype=np.float32),
            rewards=np.asarray(rng.normal(), dtype=np.float32),
            masks=1.0 - done,
            dones=done,
        )
        client.store.insert(row)
        rows.append(row)
        if i % 10 == 0:
            assert client.update()
    assert client.update_datastore("actor_env", -1, confirm_update=True)
    assert_same(list(trainer.data_store("actor_env")._data_queue), rows)


def test_stats_of_an_evaluation_are_a_defaultdict(client, trainer):
    stats = defaultdict(list)
    for key, value in itertools.product(("episode.r", "final.episode.l"), range(5)):
        stats[key].append(value)
    for key, values in stats.items():
        stats[key] = np.mean(values)
    assert client.request("send-stats", {"eval": stats}) == {}
    assert_same(
        trainer.stats[0], {"eval": {"episode.r": np.float64(2), "final.episode.l": np.float64(2)}}
    )


def test_an_info_that_was_made_an_array_arrives_as_what_it_holds(client, trainer):
    """SERL's robot actors call ``np.asarray(info)`` on the dict and send that."""
    info = {"succeed": True, "episode": {"r": np.float64(1), "l": 20}}
    assert client.request("send-stats", {"train": np.asarray(info), "env_steps": 3}) == {}
    (payload,) = trainer.stats
    assert payload["env_steps"] == 3
    assert payload["train"].shape == ()
    assert_same(payload["train"].item(), info)


def test_one_actor_of_two_trainers(running):
    """Bin relocation: a forward and a backward policy, each with its learner."""
    ports = {"fw": dict(port_number=6678, broadcast_port=6679), "bw": dict(port_number=6690)}
    servers, clients, stores, networks = {}, {}, {}, {}
    for task, numbers in ports.items():
        servers[task] = running(TrainerServer(make_trainer_config(**numbers)))
        servers[task].register_data_store("actor_env", QueuedDataStore(100))
        servers[task].start(threaded=True)
        stores[task], networks[task] = QueuedDataStore(100), Log()
        args = ("actor_env", "localhost", make_trainer_config(**numbers), stores[task])
        clients[task] = running(TrainerClient(*args, wait_for_server=True))
        clients[task].recv_network_callback(networks[task])
    for i, task in enumerate(["fw", "bw", "bw", "fw"]):
        stores[task].insert((task, i))
        assert all(client.update() for client in clients.values())
    for task, server in servers.items():
        server.publish_network({"of": task})
        assert networks[task].wait() == [{"of": task}]
        arrived = server.data_store("actor_env")._data_queue
        wait_until(lambda arrived=arrived: len(arrived) == 2)
        assert [row[0] for row in arrived] == [task] * 2


ACTOR_FIRST = """
import sys
from agentlace.data.data_store import QueuedDataStore
from agentlace.trainer import TrainerClient, TrainerConfig
config = TrainerConfig(port_number=5588, broadcast_port=5589, request_types=["send-stats"])
store = QueuedDataStore(50000)
client = TrainerClient("actor_env", "localhost", config, store, wait_for_server=True)
for i in range(25):
    store.insert(dict(observations=[i], dones=i == 24))
    if i % 10 == 0:
        client.update()
print("updated", client.update(), flush=True)
"""


@pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)
def test_an_actor_that_was_started_first_and_simply_ends(running, any_broker_url):
    """Programs never call stop(): what they have sent arrives all the same."""
    with Program(ACTOR_FIRST, broker=any_broker_url) as actor:
        actor.line("waiting")
        server = running(TrainerServer(make_trainer_config()))
        server.register_data_store("actor_env", QueuedDataStore(100))
        server.start(threaded=True)
        actor.line("updated True")
        assert actor.wait() == 0
    arrived = server.data_store("actor_env")._data_queue
    wait_until(lambda: len(arrived) == 25)
    assert [row["observations"] for row in arrived] == [[i] for i in range(25)]


# -- Manipulator Gym -------------------------------------------------------------------------------


def test_manipulator_gyms_interface(running):
    pytest.importorskip("cv2")
    image = np.zeros((256, 256, 3), np.uint8)
    image[64:192, 64:192] = (255, 128, 0)
    config = ActionConfig(
        port_number=5556,
        action_keys=["reset", "step_action", "configure", "move_eef", "move_gripper", "custom_fn"],
        observation_keys=["eef_pose", "gripper_state", "primary_img", "wrist_img"],
        broadcast_port=5557,
    )
    done = Log()

    def observe(types):
        return {
            "eef_pose": np.ones(6) * 0.3,
            "gripper_state": 0.0,
            "primary_img": utils.mat_to_jpeg(image),
        }

    def act(kind, payload):
        done((kind, payload))
        if kind == "custom_fn":
            return {"status": True, "res_payload": [0] * payload["kwargs"]["joints"]}
        return {"status": True}

    server = running(ActionServer(config, obs_callback=observe, act_callback=act))
    server.start(threaded=True)
    client = running(ActionClient("localhost", copy.deepcopy(config)))
    polling = threading.Event()
    polls = InThread(lambda: _poll(running(ActionClient("localhost", config)), polling))
    action = np.array([0.01, 0, 0, 0, 0, 0, 1.0], np.float32)
    assert (
        client.act("step_action", action)["status"] and client.act("move_eef", np.ones(6))["status"]
    )
    assert client.act("reset", {})["status"] and client.act("reset", {"go_sleep": True})["status"]
    motors = {"fn_name": "motor_status", "kwargs": {"joints": 7}}
    assert client.act("custom_fn", motors) == {"status": True, "res_payload": [0] * 7}
    polling.set()
    for obs in polls.result():
        assert obs["gripper_state"] == 0.0 and "wrist_img" not in obs
        picture = utils.jpeg_to_mat(obs["primary_img"])
        assert picture.shape == image.shape
        assert np.abs(picture.astype(int) - image)[100:150, 100:150].max() < 8
    assert [kind for kind, _ in done] == ["step_action", "move_eef", "reset", "reset", "custom_fn"]
    assert_same(done[0][1], action)


def _poll(client, stop):
    return [client.obs() for _ in itertools.takewhile(lambda _: not stop.is_set(), range(1000))]
