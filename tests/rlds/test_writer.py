"""Commits, cursors, locks, full disks, and what a writer finds when it opens a dataset."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentlace.config import BadSetting
from agentlace.errors import AlreadyServed, Closed, DecodeError, SchemaMismatch, StoreFull
from agentlace.rlds import folder as folders
from agentlace.rlds.features import Features
from agentlace.rlds.folder import saying_when_full
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.target import Target
from agentlace.rlds.verify import verify
from agentlace.rlds.writer import DatasetWriter
from tests.rlds.support import assert_same_episode, episode


def assert_holds(directory, numbers):
    reader = DatasetReader(directory)
    found = list(reader.episodes())
    assert len(found) == len(reader) == len(numbers)
    for mine, number in zip(found, numbers, strict=True):
        assert_same_episode(mine, episode(number))
    assert verify(reader).problems == []


def write(data_dir, numbers, cursor=None, **options):
    with DatasetWriter(data_dir, "some", **options) as writer:
        for number in numbers:
            writer.append(episode(number))
        writer.commit(cursor)
        return writer.directory


def test_episodes_and_the_cursor_are_there_after_the_commit_only(tmp_path):
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.directory == tmp_path / "some" / "1.0.0"
        assert (writer.cursor, writer.episodes, writer.steps, writer.nbytes) == (None, 0, 0, 0)
        writer.append(episode(0))
        writer.append(episode(1))
        assert (writer.pending, writer.episodes) == (2, 0) and writer.pending_nbytes > 0
        with pytest.raises(FileNotFoundError):
            DatasetReader(writer.directory)
        commit = writer.commit({"robot": [1, 2]})
        assert (commit.number, commit.episodes, commit.steps) == (1, 2, 3 + 4)
        assert (writer.pending, writer.pending_nbytes) == (0, 0)
        assert (writer.episodes, writer.steps, writer.nbytes) == commit[1:]
        assert_holds(writer.directory, [0, 1])
        writer.append(episode(2))
        assert_holds(writer.directory, [0, 1])


def test_the_next_writer_goes_on(tmp_path):
    for number in range(3):
        with DatasetWriter(tmp_path, "some") as writer:
            assert writer.cursor == (None if number == 0 else {"next": number})
            assert writer.episodes == number
            writer.append(episode(number))
            assert writer.commit({"next": number + 1}).number == number + 1
    assert_holds(tmp_path / "some" / "1.0.0", range(3))


def test_a_cursor_may_move_without_episodes_also_before_the_first(tmp_path):
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.commit().number == 0
        assert writer.commit({"at": 1}).number == 1
        assert writer.commit({"at": 1}).number == 1
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.cursor == {"at": 1}
        with pytest.raises(FileNotFoundError, match="no episodes yet"):
            DatasetReader(writer.directory)
        writer.append(episode(0))
        writer.commit()
        assert writer.cursor == {"at": 1}
        writer.commit({"at": 2})
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.cursor == {"at": 2}
    assert_holds(tmp_path / "some" / "1.0.0", [0])


def test_a_cursor_that_is_no_json_is_refused(tmp_path):
    with DatasetWriter(tmp_path, "some") as writer:
        writer.append(episode(0))
        with pytest.raises(TypeError, match="JSON"):
            writer.commit({"at": object()})
        writer.commit({"at": 1})
    assert_holds(tmp_path / "some" / "1.0.0", [0])


def test_what_was_not_committed_is_dropped_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), DatasetWriter(tmp_path, "some") as writer:
        writer.append(episode(0))
        writer.commit()
        writer.append(episode(1))
    assert "1 episodes that were not committed are dropped" in caplog.text
    writer.close()
    for use in (lambda: writer.append(episode(1)), writer.commit, writer.join):
        with pytest.raises(Closed, match="some"):
            use()
    assert_holds(writer.directory, [0])


def test_an_episode_that_does_not_fit_leaves_the_others(tmp_path):
    with DatasetWriter(tmp_path, "some") as writer:
        bad = episode(0)
        bad.steps[1]["action"] = object()
        with pytest.raises(SchemaMismatch, match="action"):
            writer.append(bad)
        assert writer.features is None
        writer.append(episode(0))
        bad = episode(1)
        bad.steps[2]["observation"]["joints"] = "far"
        with pytest.raises(SchemaMismatch, match="steps/2/observation/joints"):
            writer.append(bad)
        writer.append(episode(1))
        writer.commit()
    assert_holds(writer.directory, [0, 1])


def test_metadata_never_keeps_an_episode_out(tmp_path):
    given = [
        {"robot": "left", "trial": 1, "nested": {"x": 0.5}},
        {"robot": 7, "more": [1, {"a": "b"}], "nested": {"x": 0.25}},
        {},
        {"trial": 3, "odd": object, "nested": {"x": "text"}},
    ]
    with DatasetWriter(tmp_path, "some") as writer:
        for metadata in given:
            one = episode(0)
            one.metadata.clear()
            one.metadata.update(metadata)
            writer.append(one)
        writer.commit()
    found = [dict(one.metadata) for one in DatasetReader(writer.directory).episodes()]
    assert found[:3] == given[:3]
    assert found[3] == {**given[3], "odd": str(object)}


# -- opening ---------------------------------------------------------------------------------------


def test_there_is_one_writer_of_a_dataset(tmp_path):
    with DatasetWriter(tmp_path, "some"):
        with pytest.raises(AlreadyServed, match=f"written by process {os.getpid()}: one writer"):
            DatasetWriter(tmp_path, "some")
        DatasetWriter(tmp_path, "some", "1.0.1").close()
        program = (
            "from agentlace.errors import AlreadyServed\n"
            "from agentlace.rlds.writer import DatasetWriter\n"
            "import sys\n"
            "try:\n    DatasetWriter(sys.argv[1], 'some')\n"
            "except AlreadyServed as error:\n    print(error)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert f"process {os.getpid()}" in found.stdout
    DatasetWriter(tmp_path, "some").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "1st"}, "name '1st': TFDS wants a letter"),
        ({"name": "half-cheetah"}, "name 'half-cheetah'"),
        ({"version": "1.0"}, "version '1.0': TFDS wants three numbers"),
        ({"image_format": "gif"}, "image_format 'gif': use png or jpeg"),
        ({"shard_nbytes": 0}, "shard_nbytes 0"),
        ({"shard_episodes": 0}, "shard_episodes 0"),
        ({"join_after": 1}, "join_after 1"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(BadSetting, match=message):
        DatasetWriter(tmp_path, **{"name": "some", **options})
    assert not list(tmp_path.iterdir())


def test_a_dataset_of_others_is_left_alone(tmp_path):
    path = tmp_path / "some" / "1.0.0" / "dataset_info.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "some", "version": "1.0.0"}')
    with pytest.raises(DecodeError, match="agentlace did not write this dataset"):
        DatasetWriter(tmp_path, "some")
    path.write_text("{")
    with pytest.raises(DecodeError, match=r"dataset_info\.json is damaged"):
        DatasetWriter(tmp_path, "some")
    assert path.read_text() == "{"


def test_a_renamed_dataset_and_one_of_a_later_version_are_left_alone(tmp_path):
    directory = write(tmp_path, [0])
    (tmp_path / "other").mkdir()
    directory.rename(tmp_path / "other" / "1.0.0")
    with pytest.raises(DecodeError, match=r"holds the dataset some 1\.0\.0: was it renamed"):
        DatasetWriter(tmp_path, "other")
    path = tmp_path / "other" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    note = json.loads(info["releaseNotes"]["agentlace"])
    info["releaseNotes"]["agentlace"] = json.dumps({**note, "format": 2})
    path.write_text(json.dumps(info))
    with pytest.raises(DecodeError, match="later version"):
        DatasetWriter(tmp_path, "other")


def test_missing_and_cut_files_are_told(tmp_path):
    directory = write(tmp_path, [0])
    (shard,) = directory.glob("shards-*/*")
    os.truncate(shard, 100)
    with pytest.raises(DecodeError, match=r"tfrecord-00000 is 100 bytes long, not [\d,]+"):
        DatasetWriter(tmp_path, "some")
    shard.unlink()
    with pytest.raises(DecodeError, match=r"tfrecord-00000 is missing"):
        DatasetWriter(tmp_path, "some")


def test_given_features_must_be_those_of_the_dataset(tmp_path):
    features = Features.from_episode(episode(0), "jpeg")
    write(tmp_path, [0], features=features)
    write(tmp_path, [1], features=features)
    with pytest.raises(SchemaMismatch, match=r"wrist: .*png, the dataset has .*jpeg"):
        DatasetWriter(tmp_path, "some", features=Features.from_episode(episode(0)))
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.features == features


def test_leftovers_are_removed(tmp_path):
    directory = write(tmp_path, [0])
    left = [
        directory / ".dataset_info.json.1.tmp",
        directory / "shards-000000" / ".some-train.tfrecord-00001.1.tmp",
        directory / "shards-000000" / "some-train.tfrecord-00001",
        directory / "shards-000001" / "some-train.tfrecord-00000",
    ]
    left[-1].parent.mkdir()
    for path in left:
        path.write_bytes(b"left")
    DatasetWriter(tmp_path, "some").close()
    assert not [path for path in left if path.exists()] and not left[-1].parent.exists()
    assert_holds(directory, [0])


def test_no_tensorflow_is_needed(tmp_path):
    program = (
        "import sys\n"
        "from agentlace.rlds.reader import DatasetReader\n"
        "from agentlace.rlds.writer import DatasetWriter\n"
        "from tests.rlds.support import episode\n"
        "with DatasetWriter(sys.argv[1], 'some') as writer:\n"
        "    for number in range(3):\n"
        "        writer.append(episode(number))\n"
        "        writer.commit({'at': number})\n"
        "    writer.join()\n"
        "assert len(list(DatasetReader(writer.directory).episodes())) == 3\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert found.returncode == 0, found.stderr


# -- a full disk -----------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from agentlace.errors import StoreFull
from agentlace.rlds.writer import DatasetWriter
from tests.rlds.support import episode

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with DatasetWriter(sys.argv[1], "some", join_after=3) as writer:
    for number in range(3):
        writer.append(episode(number))
        writer.commit({"next": number + 1})
        writer._joiner.wait()
    writer.append(episode(3))
    left, every = int(sys.argv[2]), resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, every))
    try:
        writer.commit({"next": 4})
    except StoreFull as error:
        print(error)
    assert (writer.cursor, writer.pending) == ({"next": 3}, 1)
    writer.append(episode(4))
    if sys.argv[3] == "mended":
        resource.setrlimit(resource.RLIMIT_FSIZE, (every, every))
        writer.commit({"next": 5})
"""


@pytest.mark.parametrize(("left", "mended"), [(0, True), (1000, False), (4000, True)])
def test_a_full_disk_leaves_the_dataset_as_it_was(tmp_path, left, mended):
    # A limit of the file size stands for the disk's end: both cut a write short with an error.
    command = [sys.executable, "-c", FULL, str(tmp_path), str(left), "mended" if mended else "no"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert found.returncode == 0, found.stderr
    assert "no room for" in found.stdout and "1 episodes wait" in found.stdout
    directory = tmp_path / "some" / "1.0.0"
    assert_holds(directory, range(5 if mended else 3))
    assert not list(directory.rglob(".*.tmp"))
    with DatasetWriter(tmp_path, "some") as writer:
        assert writer.cursor == {"next": 5 if mended else 3}


def test_files_that_were_joined_make_room(tmp_path, monkeypatch):
    with DatasetWriter(tmp_path, "some") as writer:
        for number in range(3):
            writer.append(episode(number))
            writer.commit()
        writer.join()
        old = writer.directory / "shards-000000"
        write_shard = writer._folder.write_shard

        def full_while_the_old_files_are_there(*args):
            if old.exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_shard(*args)

        monkeypatch.setattr(writer._folder, "write_shard", full_while_the_old_files_are_there)
        assert old.exists()
        writer.append(episode(3))
        writer.commit()
        assert not old.exists()
    assert_holds(writer.directory, range(4))


def test_what_counts_as_a_full_disk():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(StoreFull, match=r"no room for x .*: nothing"):
            with saying_when_full(Path("x"), "nothing"):
                raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="Input/output"):
        with saying_when_full(Path("x"), "nothing"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


# -- joining ---------------------------------------------------------------------------------------


def test_small_files_are_joined_in_the_background_and_stay_few(tmp_path):
    with DatasetWriter(tmp_path, "some", join_after=4, shard_nbytes=20_000) as writer:
        for number in range(40):
            writer.append(episode(number % 7))
            writer.commit({"next": number + 1})
            writer._joiner.wait()
            assert len(DatasetReader(writer.directory)) == number + 1
    reader = DatasetReader(writer.directory)
    large = [s for s in reader.shards if s.path.stat().st_size >= 20_000]
    assert len(large) > 3 and len(reader.shards) - len(large) < 4 + 5
    assert_holds(writer.directory, [number % 7 for number in range(40)])


def test_joining_all_leaves_one_file_of_small_ones(tmp_path):
    with DatasetWriter(tmp_path, "some") as writer:
        for number in (3, 0, 0, 0, 0):
            writer.append(episode(number))
            writer.commit()
        writer.join()
        assert [shard.length for shard in DatasetReader(writer.directory).shards] == [5]
        before = writer.commit()
        writer.join()
        assert writer.commit() == before
    assert_holds(writer.directory, [3, 0, 0, 0, 0])


def test_files_get_no_more_episodes_than_they_may(tmp_path):
    with DatasetWriter(tmp_path, "some", join_after=2, shard_episodes=3) as writer:
        for number in range(5):
            writer.append(episode(number))
        writer.commit()
        for number in range(5, 12):
            writer.append(episode(number))
            writer.commit()
            writer._joiner.wait()
        writer.join()
    assert max(shard.length for shard in DatasetReader(writer.directory).shards) == 3
    assert_holds(writer.directory, range(12))


def test_who_began_to_read_reads_on_while_files_are_joined(tmp_path, monkeypatch):
    with DatasetWriter(tmp_path, "some") as writer:
        for number in range(6):
            writer.append(episode(number))
            writer.commit()
        readers = [DatasetReader(writer.directory) for _ in range(2)]
        episodes = [reader.episodes() for reader in readers]
        for found in episodes:
            assert_same_episode(next(found), episode(0))
        writer.join()
        # The old files stay for a while for those who do not look again, such as TFDS;
        assert all(shard.path.exists() for shard in readers[0].shards)
        assert [len(one) for one in episodes[0]] == [len(episode(n)) for n in range(1, 6)]
        # then the next join, or the next writer, removes them.
        monkeypatch.setattr(folders, "GRACE_S", -1.0)
    assert not any(shard.path.exists() for shard in readers[0].shards)
    for number, found in enumerate(episodes[1], 1):
        assert_same_episode(found, episode(number))


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with DatasetWriter(tmp_path, "some", shard_nbytes=6000) as writer:
        for number in (3, 0, 0):
            writer.append(episode(number))
            writer.commit()
        writer.join()
        assert [shard.length for shard in DatasetReader(writer.directory).shards] == [1, 2]
    assert_holds(writer.directory, [3, 0, 0])


def test_a_join_that_fails_is_told_and_the_dataset_goes_on(tmp_path, monkeypatch, caplog):
    with DatasetWriter(tmp_path, "some", join_after=2) as writer:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(writer._folder, "join_shards", full)
        for number in range(4):
            writer.append(episode(number))
            writer.commit()
            writer._joiner.wait()
        assert "were not joined: [Errno 28]" in caplog.text
        with pytest.raises(StoreFull, match="the small files were not joined"):
            writer.join()
        monkeypatch.undo()
        writer.join()
    assert not (writer.directory / "shards-000002").exists()
    assert_holds(writer.directory, range(4))


@pytest.mark.parametrize(
    ("sizes", "first"),
    [
        ([], None),
        ([5], None),
        ([5, 5], 0),
        ([200, 5, 5], 1),
        ([50, 5, 5], 1),
        ([50, 30, 5, 5], 2),
        ([9, 5, 5], 0),
        ([5, 200, 5], None),
        ([5, 200], None),
    ],
)
def test_which_files_are_joined(sizes, first):
    target = Target(100)
    assert target.first_to_join(sizes, [1] * len(sizes), 2) == first
    if first is not None:
        assert target.first_to_join(sizes, [1] * len(sizes), len(sizes) - first + 1) is None


def test_each_byte_is_copied_a_few_times_only():
    target, sizes, copied = Target(1 << 20), [], 0
    for _ in range(20_000):
        sizes.append(1000)
        if (first := target.first_to_join(sizes, [1] * len(sizes), 64)) is not None:
            copied += sum(sizes[first:])
            parts = iter(sizes[first:])
            groups = target.groups(sizes[first:], [1] * (len(sizes) - first))
            sizes[first:] = [sum(next(parts) for _ in range(n)) for n in groups]
        assert len(sizes) < 20 + 64 + 12
    assert copied < 6 * 20_000 * 1000
