"""``agentlace rlds info`` and ``verify``: what a dataset holds, and what is wrong with it."""

import json
import re
import sys

import numpy as np
import pytest

from agentlace.cli import main
from agentlace.rlds.episode import WRITTEN_AS, Episode
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.records import encode_episode
from agentlace.rlds.tfrecord import framed, read_records
from agentlace.rlds.writer import DatasetWriter
from tests.rlds.support import episode


@pytest.fixture
def rlds(monkeypatch, capsys):
    """Run ``agentlace rlds …``; return its exit code, and what it says to whom."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["agentlace", "rlds", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def directory(tmp_path):
    """A dataset of six episodes in two files; its steps are 3 4 5 6 3 4."""
    with DatasetWriter(tmp_path, "some") as writer:
        for number in range(6):
            writer.append(episode(number))
            if number in (2, 5):
                writer.commit({"at": number})
    return writer.directory


def test_info_tells_what_there_is(rlds, directory):
    code, said, _ = rlds("info", directory)
    assert code == 0
    assert said.startswith("some 1.0.0\n6 episodes, 25 steps, ")
    assert "in 2 files" in said
    assert "ended: 2 terminated, 2 truncated, 2 aborted" in said
    assert re.search(r"steps +3 +4 +4\.16667 +6", said)
    assert re.search(r"steps/observation/wrist +Image\(shape=\(16, 16, 3\), dtype=uint8\)", said)


def test_info_as_json(rlds, directory):
    code, said, _ = rlds("info", directory, "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["episodes"], found["steps"], found["files"]) == (6, 25, 2)
    assert found["endings"] == {"terminated": 2, "truncated": 2, "aborted": 2}
    assert found["lengths"]["most"] == 6
    returns = [episode(number).episode_return for number in range(6)]
    assert found["returns"]["least"] == pytest.approx(min(returns), abs=1e-5)
    assert found["returns"]["mean"] == pytest.approx(np.mean(returns), abs=1e-5)
    assert found["features"]["steps/reward"].startswith("Tensor(shape=(), dtype=float32")


def test_info_draws(rlds, directory, tmp_path):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib")
    path = tmp_path / "drawn.png"
    code, said, _ = rlds("info", directory, "--plot", path)
    assert code == 0 and f"drawn in {path}" in said
    drawn = cv2.imread(str(path))
    # Rows of frames below the histograms; camera noise has more colours than any chart.
    below = drawn[len(drawn) // 3 :].reshape(-1, 3)
    assert len(np.unique(below, axis=0)) > 1000


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_dataset_is_one_line(rlds, tmp_path, command):
    code, said, problem = rlds(command, tmp_path)
    assert (code, said) == (1, "")
    assert problem.startswith("agentlace: no dataset in") and problem.count("\n") == 1


def test_verify_finds_nothing_wrong(rlds, directory):
    assert rlds("verify", directory) == (0, "6 episodes, 25 steps: all is well\n", "")


# -- what verify finds -----------------------------------------------------------------------------


def shard(directory, number):
    return DatasetReader(directory).shards[number].path


def rewrite(path, records):
    path.write_bytes(b"".join(part for record in records for part in framed(record)))


def found_by(rlds, directory):
    code, said, problem = rlds("verify", directory)
    assert code == 1 and "problems" in problem
    return said


def test_verify_finds_a_damaged_record_and_goes_on(rlds, directory):
    path = shard(directory, 0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    said = found_by(rlds, directory)
    assert "some-train.tfrecord-00000: the record at byte 0 is damaged (CRC)" in said
    assert "5 whole records, but 6 episodes are promised" in said
    assert said.count("\n") == 2


def test_verify_finds_missing_cut_and_additional_records(rlds, directory):
    first, second = shard(directory, 0), shard(directory, 1)
    records = list(read_records(first))
    rewrite(first, [*records, records[0]])
    second.write_bytes(second.read_bytes()[:-10])
    said = found_by(rlds, directory)
    assert "tfrecord-00000: 4 records, but dataset_info.json says 3" in said
    assert re.search(r"tfrecord-00001: the file ends within the record at byte [\d,]+\n", said)
    assert re.search(r"tfrecord-00000: [\d,]+ bytes, but was written with [\d,]+", said)
    second.unlink()
    assert "tfrecord-00001: the file is missing" in found_by(rlds, directory)


def test_verify_finds_records_that_are_something_else(rlds, directory):
    path = shard(directory, 0)
    records = list(read_records(path))
    rewrite(path, [records[0], b"nonsense", records[2]])
    said = found_by(rlds, directory)
    assert "tfrecord-00000, episode 1 (byte" in said and "does not fit features.json" in said


def spoil(directory, change):
    """Replace the second episode by one whose steps were changed behind the writer's back."""
    reader = DatasetReader(directory)
    path = reader.shards[0].path
    records = list(read_records(path))
    one = reader.decode(records[1])
    steps = [dict(step) for step in one.steps]
    change(steps)
    changed = Episode(steps, one.ending, one.metadata)
    with DatasetWriter(directory.parents[1], "some") as writer:
        record = encode_episode(writer.features, changed, writer._threads)
    rewrite(path, [records[0], record, records[2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[1].update(is_first=True), "step 1 of 4: is_first is True"),
        (lambda s: s[0].update(is_first=False), "step 0 of 4: is_first is False"),
        (lambda s: s[3].update(is_last=False), "step 3 of 4: is_last is False"),
        (lambda s: s[1].update(is_terminal=True), "step 1 of 4: is_terminal, but not the last"),
        (lambda s: s[3].update(is_terminal=True), "it was truncated, but is_terminal is True"),
        (lambda s: s[1].update(reward=np.float32(np.nan)), "step 1 of 4: the reward is nan"),
        (lambda s: s[3].update(reward=np.float32(1)), "the last step's reward is not zero"),
        (lambda s: s[3].update(action=s[2]["action"]), "the last step's action is not zero"),
        (lambda s: s.pop(), "step 2 of 3: is_last is False"),
        (lambda s: s.clear() or s.append(episode(1).steps[-1]), "a single step"),
    ],
)
def test_verify_finds_wrong_flags_and_alignment(rlds, directory, change, message):
    spoil(directory, change)
    said = found_by(rlds, directory)
    assert re.search(r"tfrecord-00000, episode 1 \(byte [\d,]+\): " + re.escape(message), said)


def test_verify_finds_a_wrong_number_of_steps(rlds, directory):
    path = directory / "dataset_info.json"
    path.write_text(path.read_text().replace('\\"steps\\": 25', '\\"steps\\": 24'))
    assert "25 steps, but dataset_info.json says 24" in found_by(rlds, directory)


def test_steps_that_came_aligned_may_end_with_an_action(rlds, tmp_path):
    steps = episode(1).steps[:-1]
    steps[-1].update(is_last=True)
    with DatasetWriter(tmp_path, "some") as writer:
        writer.append(Episode(steps, "truncated", {WRITTEN_AS: "steps"}))
        writer.commit()
    assert rlds("verify", writer.directory)[0] == 0
