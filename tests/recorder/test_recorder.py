"""What actors send is in the dataset, once and the same, whoever goes and comes meanwhile."""

import time

import gymnasium as gym
import numpy as np
import pytest

from agentlace import AlreadyServed, BrokerUnreachable, Retention
from agentlace.config import BadSetting, BrokerURL
from agentlace.data import QueuedDataStore
from agentlace.recorder import Recorder, Settings, read_quarantined
from agentlace.recorder.episodes import CUT, LEFT, REPLACED, VANISHED
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import START, consumers, cursors
from tests.services.support import assert_same, wait_until

from .conftest import CONFIG, NAME, read
from .support import row


def play(env, steps, seed=0, instruction=None):
    """Yield the transitions of an environment with random actions, as an actor sends them."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = env.action_space.sample()
        after, reward, terminated, truncated, _ = env.step(action)
        transition = {
            "observations": observation,
            "next_observations": after,
            "actions": action,
            "rewards": np.float32(reward),
            "masks": np.float32(not terminated),
            "dones": terminated or truncated,
        }
        if instruction is not None:
            transition["language_instruction"] = instruction
        yield transition
        observation = env.reset()[0] if terminated or truncated else after


class Everything(gym.Env):
    """Ends in each way, and observes each kind of thing."""

    observation_space = gym.spaces.Dict(
        {
            "images": gym.spaces.Dict(
                {"wrist": gym.spaces.Box(0, 255, (16, 12, 3), np.uint8)},
            ),
            "state": gym.spaces.Box(-1, 1, (3,), np.float32),
            "joints": gym.spaces.Box(-1, 1, (2, 2), np.float64),
            "room": gym.spaces.Discrete(5),
            "buttons": gym.spaces.MultiBinary(3),
            "pair": gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(0, 1, (1,)))),
            "said": gym.spaces.Text(8),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._step = 0
        self._length = int(self.np_random.integers(1, 6))
        self._terminates = bool(self.np_random.integers(2))
        return self.observation_space.sample(), {}

    def step(self, action):
        self._step += 1
        ends = self._step == self._length
        ends_well, cut = ends and self._terminates, ends and not self._terminates
        return self.observation_space.sample(), float(action.sum()), ends_well, cut, {}


def episodes_of(transitions):
    """Return transitions, episode by episode."""
    found = [[]]
    for transition in transitions:
        found[-1].append(transition)
        if transition["dones"]:
            found.append([])
    return [episode for episode in found if episode]


def as_dicts(tree):
    """Return a tree as RLDS has it: dicts for tuples, and numpy's for all that is a number."""
    if isinstance(tree, tuple):
        return {str(i): as_dicts(value) for i, value in enumerate(tree)}
    if isinstance(tree, dict):
        return {key: as_dicts(value) for key, value in tree.items()}
    return tree if isinstance(tree, str) else np.asarray(tree)


def assert_equal_steps(episode, transitions):
    """N transitions are N+1 steps: (obs, the action, what it brought), and the last one."""
    assert len(episode.steps) == len(transitions) + 1
    bare = not isinstance(transitions[0]["observations"], dict)

    def observed(observation):
        return as_dicts({"state": observation} if bare else observation)

    for number, (step, sent) in enumerate(zip(episode.steps, transitions, strict=False)):
        assert_arrays(step["observation"], observed(sent["observations"]))
        assert_arrays(step["action"], as_dicts(sent["actions"]))
        assert step["reward"] == np.float32(sent["rewards"])
        assert step["discount"] == sent["masks"]
        assert (step["is_first"], step["is_last"], step["is_terminal"]) == (
            number == 0,
            False,
            False,
        )
        if "language_instruction" in sent:
            assert step["language_instruction"] == sent["language_instruction"]
    last = episode.steps[-1]
    assert_arrays(last["observation"], observed(transitions[-1]["next_observations"]))
    assert not np.any(last["action"]) and last["reward"] == last["discount"] == 0
    assert last["is_last"] and last["is_terminal"] == (transitions[-1]["masks"] == 0)


def assert_arrays(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_arrays(found[key], expected[key])
    elif isinstance(expected, str):
        assert found == expected
    else:
        found = np.asarray(found)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("make", [Everything, lambda: gym.make("CartPole-v1")], ids=["all", "pole"])
def test_what_is_read_is_what_was_played(trainer, actor, record, make):
    """From Gymnasium through the stream into RLDS and back, for programs without marks."""
    trainer()
    recording, client = record(), actor()
    sent = list(play(make(), 100, instruction="balance"))
    for number, transition in enumerate(sent):
        client.stores["env"].insert(transition)
        if number % 7 == 0:
            assert client.update()
    assert client.update()
    client.stop()
    expected = episodes_of(sent)
    found = recording.has(len(expected))
    assert len(found) == len(expected) > 3
    for episode, transitions in zip(found, expected, strict=True):
        assert_equal_steps(episode, transitions)
        last = transitions[-1]
        is_whole = bool(last["dones"])
        how = ("truncated" if last["masks"] else "terminated") if is_whole else "aborted"
        assert episode.ending == how
        assert episode.metadata["recorder"]["reason"] == ("" if is_whole else LEFT)
    endings = {episode.ending for episode in found}
    assert endings >= ({"terminated", "truncated"} if make is Everything else {"terminated"})
    assert recording.counts.is_complete


@pytest.mark.parametrize("how", ["terminated", "truncated", "aborted"])
def test_what_marks_say(trainer, actor, record, how):
    trainer()
    recording, client = record(), actor()
    sent = [row(n, masks=1.0) for n in range(4)]
    client.begin_episode({"task": "stack", "goal": np.arange(3)})
    client.stores["env"].batch_insert(sent)
    client.end_episode(how, {"success": how == "terminated"})
    assert client.update()
    (episode,) = recording.has(1)
    assert episode.ending == how
    assert len(episode.steps) == 5
    assert episode.steps[-1]["is_terminal"] == (how == "terminated")
    metadata = dict(episode.metadata)
    where = metadata.pop("recorder")
    assert_same(metadata["goal"], np.arange(3))
    assert metadata["task"] == "stack" and metadata["success"] == (how == "terminated")
    assert (where["store"], where["actor"], where["part"]) == ("env", client.actor_id, 1)


def test_a_serl_program_without_a_sign_of_its_time_limit(trainer, actor, record):
    """Its ``dones`` tell success only; after a time limit the next observation does not go on."""
    trainer()
    recording, client = record(), actor()
    for base, length, success in ((0, 5, True), (10, 4, False), (20, 3, True), (30, 6, False)):
        for n in range(base, base + length):
            last = success and n == base + length - 1
            client.stores["env"].insert(row(n, last=last, masks=1.0 - last))
        assert client.update()
    client.stop()
    found = recording.has(4)
    assert [(len(e.steps) - 1, e.ending) for e in found] == [
        *((5, "terminated"), (4, "truncated"), (3, "terminated"), (6, "aborted")),
    ]


def test_several_stores_and_actors(trainer, actor, record):
    trainer("env", "demos")
    recording = record("env", "demos")
    clients = [actor("env", "demos") for _ in range(3)]
    for episode in range(4):
        for number, client in enumerate(clients):
            for store in ("env", "demos"):
                n = 100 * number + 10 * episode + (store == "demos")
                client.stores[store].batch_insert([row(n), row(n + 1, last=True)])
            assert client.update()
    found = recording.has(24)
    firsts = sorted(int(e.steps[0]["reward"]) for e in found)
    expected = [100 * a + 10 * e + d for a in range(3) for e in range(4) for d in range(2)]
    assert firsts == sorted(expected)
    for client in clients:
        mine = [e for e in found if e.metadata["recorder"]["actor"] == client.actor_id]
        in_order = [
            int(e.steps[0]["reward"]) for e in mine if e.metadata["recorder"]["store"] == "env"
        ]
        assert in_order == sorted(in_order) and len(mine) == 8
    assert recording.recorder.status().is_complete


def test_a_discarded_episode_is_in_no_dataset(trainer, actor, record):
    trainer()
    recording, client = record(), actor()
    client.begin_episode()
    client.stores["env"].batch_insert([row(0), row(1)])
    assert client.update()
    wait_until(lambda: any(a.open_rows == 2 for a in recording.recorder.status().actors))
    client.discard_episode()
    client.begin_episode()
    client.stores["env"].batch_insert([row(5)])
    client.end_episode("terminated")
    assert client.update()
    (episode,) = recording.has(1)
    assert episode.steps[0]["reward"] == 5
    assert recording.counts.discarded == 1 and recording.counts.is_complete


class TestActorsThatGo:
    def test_one_that_vanished_and_comes_back(self, trainer, actor, record, broker_url):
        trainer()
        recording, client = record(abort_after_s=0.3), actor()
        client.begin_episode({"task": "stack"})
        client.stores["env"].batch_insert([row(0), row(1)])
        assert client.update()
        client._presence._stop.set()  # no sign of life any more, as if its network were gone
        client._presence._thread.join()
        client._presence._remove_key()
        (episode,) = recording.has(1)
        assert episode.ending == "aborted"
        assert episode.metadata["recorder"]["reason"] == VANISHED
        client.stores["env"].insert(row(2))
        client.end_episode("terminated", {"success": True})
        assert client.update()
        first, second = recording.has(2)
        assert [len(first.steps), len(second.steps)] == [3, 2]
        assert second.ending == "terminated"
        parts = [episode.metadata["recorder"] for episode in (first, second)]
        assert [part["part"] for part in parts] == [1, 2]
        assert parts[0]["id"] == parts[1]["id"]
        assert second.metadata["task"] == "stack"
        assert recording.counts.sent == recording.counts.written == 1
        assert recording.recorder.status().is_complete

    def test_one_that_says_goodbye_in_an_episode(self, trainer, actor, record):
        trainer()
        recording, client = record(), actor()
        client.stores["env"].batch_insert([row(0), row(1)])
        assert client.update()
        client.stop()
        (episode,) = recording.has(1)
        assert (episode.ending, episode.metadata["recorder"]["reason"]) == ("aborted", LEFT)

    def test_one_that_is_started_anew(self, trainer, actor, record):
        trainer()
        recording, first = record(), actor(actor_id="robot")
        first.stores["env"].batch_insert([row(0), row(1)])
        assert first.update()
        second = actor(actor_id="robot")
        second.stores["env"].batch_insert([row(7, last=True)])
        assert second.update()
        found = recording.has(2)
        assert [e.metadata["recorder"]["reason"] for e in found] == [REPLACED, ""]

    def test_one_that_is_only_slow_is_waited_for(self, trainer, actor, record):
        trainer()
        recording, client = record(abort_after_s=0.2), actor()
        client.stores["env"].batch_insert([row(0)])
        assert client.update()
        wait_until(lambda: any(a.open_rows for a in recording.recorder.status().actors))
        looked = recording.recorder._attendance
        for _ in range(5):
            before = looked._next
            wait_until(lambda b=before: looked._next > b)
        assert recording.recorder.status().episodes == 0


class TestGoingOn:
    def test_open_episodes_wait_in_the_stream(self, trainer, actor, record):
        trainer()
        recording, client = record(), actor()
        client.stores["env"].batch_insert([row(0, last=True), row(1), row(2)])
        assert client.update()
        recording.has(1)
        assert len(recording.stop()) == 1
        client.stores["env"].batch_insert([row(3, last=True)])
        assert client.update()
        again = record()
        found = again.has(2)
        assert [[int(s["reward"]) for s in e.steps[:-1]] for e in found] == [[0], [1, 2, 3]]
        assert again.recorder.status().is_complete

    def test_another_dataset_reads_all_that_is_there(self, trainer, actor, record, tmp_path):
        trainer()
        recording, client = record(), actor()
        client.stores["env"].batch_insert([row(0, last=True)])
        assert client.update()
        recording.has(1)
        recording.stop()
        assert len(record(version="2.0.0").has(1)) == 1

    def test_only_what_is_committed_may_be_trimmed(self, trainer, actor, record, broker_url):
        trainer()
        recording, client = record(), actor()
        keys = _keys(broker_url).store("env")
        channel = Broker(BrokerURL.parse(broker_url)).channel()
        name = f"recorder:{NAME}"
        client.stores["env"].batch_insert([row(0), row(1)])
        assert client.update()
        wait_until(lambda: any(a.open_rows == 2 for a in recording.recorder.status().actors))
        assert cursors(channel, keys, client.actor_id)[name] == START
        client.stores["env"].batch_insert([row(2, last=True), row(3)])
        assert client.update()
        wait_until(lambda: cursors(channel, keys, client.actor_id)[name].number == 3)
        recording.stop()
        assert cursors(channel, keys, client.actor_id)[name].number == 3
        assert name in consumers(channel, keys)
        again = record()
        again.stop(forget=True)
        assert name not in consumers(channel, keys)
        channel.close()

    def test_once_ends_when_all_is_read(self, trainer, actor, record):
        trainer()
        client = actor()
        for n in range(30):
            client.stores["env"].batch_insert([row(n, last=True)])
            assert client.update()
        recorder = record(start=False)
        recorder.start()
        recorder.run(once=True)
        recorder.stop()
        assert len(read(recorder)) == 30

    def test_once_with_nothing_there(self, record):
        recorder = record(start=False)
        recorder.start()
        recorder.run(once=True)
        recorder.stop()
        assert recorder.status().is_complete


class TestWhatDoesNotFit:
    def test_it_is_kept_aside(self, trainer, actor, record):
        trainer()
        recording, client = record(), actor()
        odd = {**row(1, last=True), "actions": np.zeros(9, np.float32)}
        client.stores["env"].batch_insert([row(0, last=True), odd, row(2, last=True)])
        assert client.update()
        assert [int(e.steps[0]["reward"]) for e in recording.has(2)] == [0, 2]
        recorder = recording.recorder
        wait_until(lambda: recording.counts.quarantined == 1)
        (path,) = recorder.quarantine.iterdir()
        found = read_quarantined(path)
        assert "action" in found["reason"] and "(9,)" in found["reason"]
        assert found["about"]["actor"] == client.actor_id
        assert found["about"]["ending"] == "terminated"
        assert_same(found["transitions"][0]["actions"], odd["actions"])
        status = recorder.status()
        assert (status.counts.sent, status.counts.written) == (3, 2)
        assert not status.is_complete
        recording.stop()
        assert record().recorder.status().is_complete  # since then, nothing else

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            ([1, 2], "int"),
            ([{"observations": np.zeros(2), "dones": True}], "actions"),
            ([{**row(0), "extra": {"deep": [1, (2, 3)]}, "dones": True}], "inhomogeneous"),
        ],
        ids=["numbers", "no action", "lists"],
    )
    def test_what_is_no_episode_at_all(self, trainer, actor, record, rows, reason):
        trainer()
        recording, client = record(), actor()
        client.stores["env"].batch_insert(rows)
        client.end_episode("terminated")
        client.begin_episode()
        client.stores["env"].batch_insert([row(5)])
        client.end_episode("terminated")
        assert client.update()
        recording.has(1)
        (path,) = recording.recorder.quarantine.iterdir()
        assert reason in read_quarantined(path)["reason"]
        assert len(read_quarantined(path)["transitions"]) == len(rows)


class TestBounds:
    def test_a_stream_that_holds_less_than_an_episode(self, trainer, actor, record):
        """A recorder that waits for its end and an actor that waits for room: neither may."""
        trainer(retention=Retention(max_bytes=200_000))
        recording, client = record(), actor()
        image = np.zeros(4000, np.uint8)
        client.begin_episode()
        for n in range(150):
            client.stores["env"].insert({**row(n), "image": image + np.uint8(n)})
            assert client.update(), client.last_error
        client.end_episode("terminated")
        assert client.update()
        wait_until(lambda: recording.counts.steps == 150)
        found = recording.has(recording.counts.parts)
        whole = [int(s["reward"]) for e in found for s in e.steps[:-1]]
        assert whole == list(range(150))
        assert {e.metadata["recorder"]["reason"] for e in found} == {CUT, ""}
        assert found[-1].ending == "terminated"
        assert recording.counts.written == 1 and recording.recorder.status().is_complete

    def test_memory_is_bounded_per_actor(self, trainer, actor, record):
        trainer()
        recording, client = record(open_max_bytes=100_000), actor()
        for n in range(100):
            client.stores["env"].insert({**row(n), "image": np.full(4000, n, np.uint8)})
        assert client.update()
        wait_until(lambda: recording.counts.steps >= 80)
        client.stop()
        found = recording.has(5)
        assert all(len(e.steps) < 30 for e in found)


class TestRefusals:
    def test_two_recorders_of_one_dataset(self, record):
        record()
        with pytest.raises(AlreadyServed):
            record()

    def test_two_recorders_of_one_name_elsewhere(self, record, broker_url, tmp_path):
        """They would move each other's cursors."""
        record()
        other = Recorder(
            *(["env"], tmp_path / "elsewhere", NAME),
            port_number=CONFIG.port_number,
            broker=broker_url,
        )
        with pytest.raises(AlreadyServed, match=f"recorder:{NAME}"):
            other.start()
        other.stop()

    def test_one_that_is_replaced_ends(self, record, broker_url):
        recording = record()
        life = recording.recorder._presence
        channel = Broker(BrokerURL.parse(broker_url)).channel()
        other = '{"role": "recorder", "name": "x", "host": "elsewhere", "pid": 1, "token": "other"}'
        channel.call("SET", life._key, other, "PX", 60_000)
        assert isinstance(recording.outcome(), AlreadyServed)
        recording.recorder.stop()
        channel.close()

    def test_a_store_that_the_trainer_does_not_know(self, trainer, record, caplog):
        trainer("env", "demos")
        record("nev")
        assert "the trainer has no store 'nev', but ['demos', 'env']" in caplog.text

    def test_no_broker(self, tmp_path):
        recorder = Recorder(["env"], tmp_path, NAME, broker="redis://127.0.0.1:1")
        with pytest.raises(BrokerUnreachable):
            recorder.start()
        assert not list(tmp_path.iterdir())

    def test_settings(self, tmp_path):
        with pytest.raises(BadSetting, match="store"):
            Recorder([], tmp_path, NAME)
        for name in ("abort_after_s", "open_max_bytes", "commit_every_s"):
            with pytest.raises(BadSetting, match=name):
                Settings(**{name: 0})


def test_when_each_transition_was_inserted(trainer, actor, record):
    trainer()
    recording, client = record(), actor()
    client._outboxes["env"].store = queue = QueuedDataStore(100, stamps=True)
    before = time.time_ns(), time.monotonic_ns()
    queue.insert(row(0))
    queue.batch_insert([row(1), row(2, last=True)])
    after = time.time_ns(), time.monotonic_ns()
    assert client.update()
    (episode,) = recording.has(1)
    for key, first, last in zip(("wall_time_ns", "monotonic_time_ns"), before, after, strict=True):
        times = [int(step[key]) for step in episode.steps]
        assert [first, *times, last] == sorted([first, *times, last])
        assert times[-1] == times[-2]


def test_a_trainer_is_not_needed(actor, trainer, record):
    server = trainer()
    client = actor()
    server.stop()
    recording = record()
    client.stores["env"].batch_insert([row(0, last=True)])
    assert client.update()
    recording.has(1)


def test_a_learner_gets_the_same(trainer, actor, record):
    """Recording takes nothing away from the trainer's store."""
    server = trainer()
    recording, client = record(), actor()
    client.stores["env"].batch_insert([row(n, last=n % 5 == 4) for n in range(50)])
    assert client.update_datastore("env", -1, confirm_update=True)
    recording.has(10)
    assert len(server.data_store("env")) == 50


def _keys(url):
    return ServiceKeys(BrokerURL.parse(url).namespace, "trainer", CONFIG.port_number)
