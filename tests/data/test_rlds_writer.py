"""Episodes recorded in the process that has them: RLDSWriter, and the stores' rlds_logger."""

import logging

import numpy as np
import pytest

from agentlace.codec import decode_chunk, encode_chunk
from agentlace.data.columns import leaves_of
from agentlace.data.data_store import put
from agentlace.data.ends import ending_of
from agentlace.data.jaxrl_data_store import (
    ReplayBufferDataStore,
    TrajectoryBufferDataStore,
    make_default_trajectory_buffer,
)
from agentlace.data.rlds_writer import RLDSWriter, StepType
from agentlace.data.trajectory_buffer import DataShape
from agentlace.errors import Closed, SchemaMismatch
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.verify import verify

spaces = pytest.importorskip("gymnasium").spaces

OBSERVATION = spaces.Dict(
    {
        "state": spaces.Box(-1, 1, (3,)),
        "camera": spaces.Box(0, 255, (1, 8, 9, 3), np.uint8),
    }
)
ACTION = spaces.Box(-1, 1, (2,))
SPEC = {"observation": OBSERVATION, "action": ACTION}


def rows(number, n, ending="terminated"):
    """An episode's transitions."""
    rng = np.random.default_rng(number)

    def observation():
        return {
            "state": rng.normal(size=3).astype(np.float32),
            "camera": rng.integers(256, size=(1, 8, 9, 3), dtype=np.uint8),
        }

    observations = [observation() for _ in range(n + 1)]
    return [
        {
            "observations": observations[i],
            "actions": rng.normal(size=2).astype(np.float32),
            "next_observations": observations[i + 1],
            "rewards": np.float32(i),
            "masks": np.float32(not (ending == "terminated" and i == n - 1)),
            "dones": np.bool_(i == n - 1),
        }
        for i in range(n)
    ]


def assert_holds(directory, wanted):
    """Compare a dataset with lists of transitions and their endings, in any order."""
    reader = DatasetReader(directory)
    assert verify(reader).problems == []
    found = sorted(reader.episodes(), key=lambda e: e.steps[0]["observation"]["state"][0])
    wanted = sorted(wanted, key=lambda e: e[0][0]["observations"]["state"][0])
    assert [(len(e) - 1, e.ending) for e in found] == [(len(r), ending) for r, ending in wanted]
    for episode, (transitions, _) in zip(found, wanted, strict=True):
        for mine, theirs in zip(episode.transitions(), transitions, strict=True):
            for key in ("state", "camera"):
                assert np.array_equal(mine["observations"][key], theirs["observations"][key])
            after = mine["next_observations"]["camera"], theirs["next_observations"]["camera"]
            assert np.array_equal(*after)
            assert np.array_equal(mine["actions"], theirs["actions"])
            assert mine["rewards"] == theirs["rewards"] and mine["masks"] == theirs["masks"]


# -- RLDSWriter ------------------------------------------------------------------------------------


def steps_of(transitions):
    """The steps that a program of the earlier library hands over."""
    last = len(transitions) - 1
    for i, row in enumerate(transitions):
        yield {
            "observation": row["observations"],
            "action": row["actions"],
            "reward": row["rewards"],
            "discount": row["masks"],
            "is_first": i == 0,
            "is_last": i == last,
            "is_terminal": i == last and not row["masks"],
        }


def test_steps_become_episodes(tmp_path):
    writer = RLDSWriter("steps", SPEC, str(tmp_path / "logs"), "0.0.1", max_episodes_per_file=2)
    given = [rows(0, 3), rows(1, 4, "truncated"), rows(2, 2)]
    for transitions in given:
        for step in steps_of(transitions):
            writer(step)
    # Each is there before the writer is closed, in its own folder.
    reader = DatasetReader(tmp_path / "logs")
    found = list(reader.episodes())
    assert [len(episode) for episode in found] == [3, 4, 2]
    assert [episode.ending for episode in found] == ["terminated", "truncated", "terminated"]
    for episode, transitions in zip(found, given, strict=True):
        for mine, theirs in zip(episode.steps, transitions, strict=True):
            assert np.array_equal(mine["action"], theirs["actions"])
            assert mine["reward"] == theirs["rewards"]
            camera = mine["observation"]["camera"]
            assert np.array_equal(camera, theirs["observations"]["camera"])
    assert verify(reader).problems == []
    writer.close()


def test_an_open_episode_is_written_when_the_writer_is_closed(tmp_path):
    writer = RLDSWriter("open", SPEC, tmp_path, "0.0.1")
    given = list(steps_of(rows(0, 5)))
    for step in given[:3]:
        writer(step)
    writer.close()
    writer.close()
    (episode,) = DatasetReader(tmp_path).episodes()
    assert (len(episode), episode.ending) == (3, "aborted")
    assert episode.steps[-1]["is_last"] and not episode.steps[-1]["is_terminal"]
    with pytest.raises(Closed):
        writer(given[3])


def test_end_of_trajectory_ends_and_is_no_part_of_the_step(tmp_path):
    writer = RLDSWriter("ends", None, tmp_path, "0.0.1")
    for i in range(3):
        writer({"observation": np.float32(i), "action": i, "end_of_trajectory": i == 2})
    writer.close()
    (episode,) = DatasetReader(tmp_path).episodes()
    assert episode.bare_observation and episode.ending == "truncated"
    assert "end_of_trajectory" not in episode.steps[0]
    assert [step["action"] for step in episode.steps] == [0, 1, 2]


def test_arrays_may_be_used_again(tmp_path):
    writer = RLDSWriter("again", None, tmp_path, "0.0.1")
    observation = np.zeros(2, np.float32)
    for i in range(3):
        observation += 1
        writer({"observation": {"x": observation}, "action": i, "is_last": i == 2})
    writer.close()
    (episode,) = DatasetReader(tmp_path).episodes()
    assert [step["observation"]["x"][0] for step in episode.steps] == [1, 2, 3]


def test_a_dataset_goes_on_with_the_same_spec_only(tmp_path):
    for number in range(2):
        writer = RLDSWriter("more", SPEC, tmp_path, "0.0.1")
        for row in rows(number, 3):
            writer.add_transition(row, ending_of(row))
        writer.close()
    assert len(DatasetReader(tmp_path)) == 2
    other = {"observation": OBSERVATION, "action": spaces.Box(-1, 1, (3,))}
    with pytest.raises(SchemaMismatch, match=r"action.*\(3,\).*\(2,\)"):
        RLDSWriter("more", other, tmp_path, "0.0.1")
    with pytest.raises(SchemaMismatch, match="action: missing"):
        RLDSWriter("other", {"observation": OBSERVATION}, tmp_path / "other", "0.0.1")


def test_a_spec_may_be_of_whatever_has_a_shape_and_a_dtype(tmp_path):
    spec = {
        "observation": {k: np.zeros(s.shape, s.dtype) for k, s in OBSERVATION.spaces.items()},
        "action": np.zeros(2, np.float32),
    }
    writer = RLDSWriter("arrays", spec, tmp_path, "0.0.1")
    bad = [{**row, "actions": np.zeros(3, np.float32)} for row in rows(0, 2)]
    writer.add_transition(bad[0])
    with pytest.raises(SchemaMismatch, match=r"steps/0/action: shape \(3,\).*\(2,\)"):
        writer.add_transition(bad[1], "truncated")
    for row in rows(1, 2):
        writer.add_transition(row, ending_of(row))
    writer.close()
    assert_holds(tmp_path, [(rows(1, 2), "terminated")])


# -- the stores' rlds_logger -----------------------------------------------------------------------


def make_store(kind, logger):
    if kind == "replay":
        return ReplayBufferDataStore(OBSERVATION, ACTION, 100, rlds_logger=logger)
    return make_default_trajectory_buffer(OBSERVATION, ACTION, 100, rlds_logger=logger)


@pytest.fixture(params=["replay", "trajectory"])
def kind(request):
    return request.param


def chunk_of(transitions, actor):
    chunk = decode_chunk(bytes(encode_chunk(transitions, {"actor": actor})))
    assert chunk.meta["actor"] == actor
    return chunk


def insertable(kind, transitions):
    """What these stores take: the trajectory buffer declares its own mark."""
    if kind == "replay":
        return transitions
    return [{**row, "end_of_trajectory": row["dones"]} for row in transitions]


def test_what_is_inserted_is_recorded(kind, tmp_path):
    writer = RLDSWriter("store", SPEC, tmp_path, "0.0.1")
    store = make_store(kind, writer)
    given = [(rows(0, 3), "terminated"), (rows(1, 4, "truncated"), "truncated")]
    for transitions, _ in given:
        for row in insertable(kind, transitions):
            store.insert(row)
    for row in insertable(kind, rows(2, 5))[:2]:
        store.insert(row)
    writer.close()
    assert len(store) == 9
    assert_holds(tmp_path, [*given, (rows(2, 5)[:2], "aborted")])


def test_episodes_of_several_actors_are_kept_apart(kind, tmp_path):
    writer = RLDSWriter("actors", SPEC, tmp_path, "0.0.1")
    store = make_store(kind, writer)
    one, two = rows(0, 6), rows(1, 5, "truncated")
    for i in range(0, 6, 2):
        assert put(store, chunk_of(insertable(kind, one)[i : i + 2], "one")) == {}
        if two[i : i + 2]:
            assert put(store, chunk_of(insertable(kind, two)[i : i + 2], "two")) == {}
    writer.close()
    assert_holds(tmp_path, [(one, "terminated"), (two, "truncated")])


class Calls(list):
    """A logger of a user's own."""

    def __call__(self, action, obs, reward, step_type):
        self.append((action, obs, reward, step_type))


def assert_calls(calls, transitions, last):
    """A RESTART with the first observation, then each action with what it brought."""
    action, obs, reward, step_type = calls[0]
    assert not np.any(action) and action.shape == (2,)
    assert np.array_equal(obs["camera"], transitions[0]["observations"]["camera"])
    assert (reward, step_type) == (0.0, StepType.RESTART)
    for row, (action, obs, reward, _) in zip(transitions, calls[1:], strict=True):
        assert np.array_equal(action, row["actions"]) and reward == row["rewards"]
        assert np.array_equal(obs["camera"], row["next_observations"]["camera"])
    kinds = [step_type for *_, step_type in calls[1:]]
    assert kinds == [StepType.TRANSITION] * (len(transitions) - 1) + [last]


def test_a_logger_of_a_users_own_is_called(kind):
    calls = Calls()
    store = make_store(kind, calls)
    one, two = rows(0, 3), rows(1, 2, "truncated")
    for row in insertable(kind, one + two):
        store.insert(row)
    assert_calls(calls[:4], one, StepType.TERMINATION)
    assert_calls(calls[4:], two, StepType.TRUNCATION)


def test_a_logger_sees_one_episode_at_a_time(kind):
    calls = Calls()
    store = make_store(kind, calls)
    one, two = rows(0, 4), rows(1, 4)
    for i in range(0, 4, 2):
        put(store, chunk_of(insertable(kind, one)[i : i + 2], "one"))
        put(store, chunk_of(insertable(kind, two)[i : i + 2], "two"))
    assert_calls(calls[:5], one, StepType.TERMINATION)
    assert_calls(calls[5:], two, StepType.TERMINATION)


def test_a_refused_transition_cuts_the_episode(kind, tmp_path):
    writer = RLDSWriter("cut", SPEC, tmp_path, "0.0.1")
    store = make_store(kind, writer)
    given = insertable(kind, rows(0, 5))
    put(store, chunk_of(given[:2], "one"))
    bad = {**given[2], "rewards": np.zeros(7, np.float32)}
    with pytest.raises(SchemaMismatch):
        put(store, chunk_of([bad], "one"))
    put(store, chunk_of(given[3:], "one"))
    writer.close()
    assert_holds(tmp_path, [(rows(0, 5)[:2], "aborted"), (rows(0, 5)[3:], "terminated")])


def test_a_logger_that_fails_keeps_nothing_from_the_store(kind, caplog):
    def fails(**_):
        raise RuntimeError("the disk is gone")

    store = make_store(kind, fails)
    with caplog.at_level(logging.ERROR):
        for row in insertable(kind, rows(0, 3)):
            store.insert(row)
    assert len(store) == 3
    assert "the disk is gone" in caplog.text


def test_columns_stay_columns_without_a_logger(monkeypatch):
    store = ReplayBufferDataStore(OBSERVATION, ACTION, 100)
    monkeypatch.setattr(store, "_write_row", None)  # not called
    put(store, chunk_of(rows(0, 3), "one"))
    assert len(store) == 3


def test_an_insert_of_a_users_own_is_called_for_each_row(kind, tmp_path):
    base = ReplayBufferDataStore if kind == "replay" else TrajectoryBufferDataStore

    class Counting(base):
        seen = 0

        def insert(self, data, *args):
            self.seen += 1
            super().insert(data, *args)

    writer = RLDSWriter("own", SPEC, tmp_path, "0.0.1")
    shapes = [
        DataShape(path, np.shape(leaf), np.asarray(leaf).dtype)
        for path, leaf in leaves_of(rows(0, 1)[0])
    ]
    if kind == "replay":
        store = Counting(OBSERVATION, ACTION, 100, rlds_logger=writer)
    else:
        store = Counting(100, shapes, rlds_logger=writer)
    put(store, chunk_of(insertable(kind, rows(0, 3)), "one"))
    writer.close()
    assert store.seen == len(store) == 3
    assert_holds(tmp_path, [(rows(0, 3), "terminated")])


@pytest.mark.parametrize(
    ("row", "ending"),
    [
        ({"masks": 1.0}, None),
        ({"masks": 0.0}, "terminated"),
        ({"masks": 1.0, "dones": True}, "truncated"),
        ({"masks": 0.0, "dones": np.array([True])}, "terminated"),
        ({"dones": False}, None),
        ({"dones": True}, "terminated"),
        ({"dones": True, "truncates": True}, "truncated"),
        ({"terminated": True, "truncated": False}, "terminated"),
        ({"terminated": False, "truncated": True}, "truncated"),
        ({"terminated": False, "truncated": False}, None),
        ({"masks": 1.0, "end_of_trajectory": True}, "truncated"),
        ({}, None),
    ],
)
def test_how_transitions_tell_their_ending(row, ending):
    assert ending_of(row) == ending
    assert ending_of(row, ends=True) == (ending or "truncated")
