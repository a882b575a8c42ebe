"""RLDS episodes become a Minari dataset, and episodes again."""

import gc

import numpy as np
import pytest

from agentlace import DecodeError, MissingExtra
from agentlace.data import ReplayBuffer
from agentlace.data.columns import leaves_of
from agentlace.data.demos import load_minari
from agentlace.data.minari_format import from_minari, to_minari
from agentlace.rlds.episode import episode_from_transitions

from .rlds_episodes import check_transition, episodes, expected

LENGTHS = (5, 1, 3, 8)


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    yield pytest.importorskip("minari")
    gc.collect()  # Minari leaves a folder open, which warns when it is collected


def assert_same_steps(found, wanted):
    for step, other in zip(found.steps, wanted.steps, strict=True):
        leaves, others = dict(leaves_of(step)), dict(leaves_of(other))
        assert leaves.keys() == others.keys()
        for path, leaf in leaves.items():
            value, expected_value = np.asarray(leaf), np.asarray(others[path])
            assert value.dtype == expected_value.dtype, path
            assert np.array_equal(value, expected_value), path


def test_all_of_an_episode_comes_back(minari):
    before = episodes(LENGTHS)
    assert to_minari(iter(before), "test/cube-v0") == len(LENGTHS)
    after = list(from_minari("test/cube-v0"))
    for found, wanted in zip(after, before, strict=True):
        assert_same_steps(found, wanted)
        assert (found.ending, found.metadata) == (wanted.ending, wanted.metadata)


def test_minari_reads_what_was_written(minari):
    """Pixel by pixel: Minari makes images JPEG unless it is told otherwise."""
    to_minari(episodes(LENGTHS), "test/cube-v0")
    dataset = minari.load_dataset("test/cube-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (len(LENGTHS), sum(LENGTHS))
    assert [bool(e.terminations[-1]) for e in dataset] == [True, False, False, True]
    assert [bool(e.truncations[-1]) for e in dataset] == [False, True, True, False]
    assert dataset[0].infos["language_instruction"].tolist() == ["lift cube 0"] * 6
    store = ReplayBuffer(100)
    load_minari(store, dataset)
    rows = store.get_latest_data(-1)
    for row, (e, t, is_last, mask) in zip(rows, expected(LENGTHS), strict=True):
        check_transition(row, e, t, mask)
        assert row["dones"] == is_last


def test_trees_texts_tuples_and_bare_arrays(minari):
    def observe(t):
        return {"a": {"b": np.float64([t])}, "said": f"step {t}", "pair": (np.int64(t), t % 2 == 0)}

    rows = [
        {"observations": observe(t), "next_observations": observe(t + 1), "actions": np.int64(t)}
        for t in range(3)
    ]
    bare = [
        {"observations": np.ones(2), "next_observations": np.ones(2), "actions": {"x": np.ones(1)}}
    ]
    for name, given in (("tree", rows), ("bare", bare)):
        before = episode_from_transitions(given, "aborted", {"seeds": np.arange(2), "by": "me"})
        to_minari([before], f"test/{name}-v0")
        (after,) = from_minari(minari.load_dataset(f"test/{name}-v0"))
        assert_same_steps(after, before)
        assert after.ending == "aborted" and after.metadata["by"] == "me"
        assert after.metadata["seeds"].tolist() == [0, 1]
        assert after.bare_observation == before.bare_observation


@pytest.mark.filterwarnings("ignore")  # Minari's own: of metadata that is missing
def test_a_dataset_that_others_collected(minari):
    gym = pytest.importorskip("gymnasium")
    env = minari.DataCollector(gym.make("Pendulum-v1", max_episode_steps=4), record_infos=True)
    env.reset(seed=1)
    for _ in range(4):
        env.step(env.action_space.sample())
    env.create_dataset("test/pendulum-v0")
    (episode,) = from_minari("test/pendulum-v0")
    assert (len(episode), episode.ending) == (5, "truncated")
    assert episode.metadata == {"minari_id": 0} and episode.bare_observation
    assert episode.steps[-1]["is_last"] and not episode.steps[-1]["is_terminal"]


def test_what_cannot_be_written_leaves_nothing(minari):
    with pytest.raises(DecodeError, match="no episodes"):
        to_minari([], "test/none-v0")

    def breaks():
        yield from episodes((3,))
        raise OSError("the disk of the source broke")

    with pytest.raises(OSError, match="broke"):
        to_minari(breaks(), "test/none-v0")
    assert minari.list_local_datasets() == {}
    to_minari(episodes((3,)), "test/none-v0")
    with pytest.raises(ValueError, match="already"):
        to_minari(episodes((3,)), "test/none-v0")
    assert minari.load_dataset("test/none-v0").total_episodes == 1


def test_without_minari(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(MissingExtra, match=r"agentlace\[minari\]"):
        to_minari(episodes((1,)), "test/x-v0")
    with pytest.raises(MissingExtra):
        next(from_minari("test/x-v0"))
