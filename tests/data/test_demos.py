"""Demonstrations from files."""

import gc

import numpy as np
import pytest

from agentlace import DecodeError, MissingExtra, SchemaMismatch
from agentlace.data import FrameReplayBuffer, Mixture, RateLimiter, ReplayBuffer
from agentlace.data.demos import load_demos, load_minari, save_demos
from agentlace.data.jaxrl_data_store import make_default_trajectory_buffer

from .test_frame_buffer import everything, observation, same, transitions


@pytest.mark.parametrize("make", [ReplayBuffer, FrameReplayBuffer])
def test_what_was_saved_is_loaded_and_does_not_count_as_inserted(make, tmp_path):
    rows = transitions([900, 700], lambda e, t: observation(t, e))
    save_demos(tmp_path / "demos", rows)
    loaded, plain = make(2000), make(2000)
    assert load_demos(loaded, tmp_path / "demos.npz") == 1600
    plain.batch_insert(rows)
    assert same(everything(loaded), everything(plain))
    assert loaded.preloaded == loaded.inserted == 1600
    mixture = Mixture({"demo": 0.5, "online": 0.5}, {"demo": loaded, "online": ReplayBuffer(9)})
    assert "0 of 1 transitions" in RateLimiter(1).waits_for(mixture, 8)


def test_files_that_hold_no_demonstrations(tmp_path):
    store, path = ReplayBuffer(9), tmp_path / "demos.npz"
    with pytest.raises(FileNotFoundError):
        load_demos(store, path)
    for arrays in ({"a": np.zeros(3), "b": np.zeros(2)}, {"a": np.float32(1)}, {}):
        np.savez(path, **arrays)
        with pytest.raises(DecodeError, match="one length"):
            load_demos(store, path)
    np.savez(path, a=np.array([{"pickled": 1}]))
    with pytest.raises(DecodeError, match="archive of arrays"):
        load_demos(store, path)
    np.savez(path, a=np.zeros(3))
    for damaged in (b"no archive", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DecodeError, match="archive of arrays"):
            load_demos(store, path)
    assert store.inserted == store.preloaded == 0


def test_what_cannot_be_saved_leaves_the_file_as_it_was(tmp_path):
    save_demos(tmp_path / "d", [{"file": 1}])
    with pytest.raises(ValueError, match="arrays"):
        save_demos(tmp_path / "d", [{"file": 2, "text": object()}])
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]
    store = ReplayBuffer(9)
    assert load_demos(store, tmp_path / "d.npz") == 1 and everything(store)["file"] == [1]


def test_demonstrations_that_do_not_fit(tmp_path):
    save_demos(tmp_path / "d", [{"a": np.zeros(3)}])
    store = ReplayBuffer(9, example={"a": np.zeros(2)})
    with pytest.raises(SchemaMismatch, match=r"a: shape \(3,\), the store has \(2,\)"):
        load_demos(store, tmp_path / "d")


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return pytest.importorskip("minari")


@pytest.mark.filterwarnings("ignore")  # Minari's own: of metadata, and of folders it leaves
def test_minari_episodes_become_transitions(minari):
    """Pendulum, whose episodes of 5 steps are cut by a limit."""
    gym = pytest.importorskip("gymnasium")
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    collector = minari.DataCollector(env)
    seen = []
    for seed in range(3):
        seen.append([collector.reset(seed=seed)[0]])
        done = False
        while not done:
            observation, _, terminated, truncated, _ = collector.step(env.action_space.sample())
            seen[-1].append(observation)
            done = terminated or truncated
    collector.create_dataset("test/pendulum-v0", algorithm_name="random")
    collector.close()
    del collector
    gc.collect()
    spaces = env.observation_space, env.action_space
    store = make_default_trajectory_buffer(*spaces, 100)
    assert load_minari(store, "test/pendulum-v0") == store.preloaded == 15
    data, _ = store.sample("training", 0, force_indices=np.arange(15))
    assert np.array_equal(data["observations"], np.concatenate([s[:-1] for s in seen]))
    assert np.array_equal(data["next_observations"], np.concatenate([s[1:] for s in seen]))
    assert data["masks"].all() and np.flatnonzero(data["end_of_trajectory"]).tolist() == [4, 9, 14]


def test_a_name_needs_minari(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(MissingExtra, match="minari"):
        load_minari(ReplayBuffer(3), "D4RL/door/human-v2")
