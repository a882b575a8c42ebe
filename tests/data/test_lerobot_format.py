"""RLDS episodes become a LeRobot dataset; `make lerobot` runs it where that is installed."""

import numpy as np
import pytest

from agentlace import AgentlaceError, DecodeError
from agentlace.data.lerobot_format import to_lerobot

from .rlds_episodes import ENDINGS, episode, episodes, expected, observation

LENGTHS = (5, 1, 3, 8)


@pytest.fixture
def lerobot(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lerobot.datasets.lerobot_dataset").LeRobotDataset


def test_without_lerobot(monkeypatch, tmp_path):
    for name in ("lerobot", "lerobot.datasets", "lerobot.datasets.lerobot_dataset"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(AgentlaceError, match="pip install 'lerobot"):
        to_lerobot(episodes(LENGTHS), tmp_path / "d", 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")  # LeRobot's own
def test_lerobot_reads_what_was_written(lerobot, tmp_path):
    assert to_lerobot(iter(episodes(LENGTHS)), tmp_path / "d", 10) == len(LENGTHS)
    dataset = lerobot("local/agentlace", root=tmp_path / "d")
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (len(LENGTHS), sum(LENGTHS), 10)
    assert dataset.meta.info["codebase_version"] == "v3.0"
    for i, (e, t, is_last, _) in enumerate(expected(LENGTHS)):
        frame, seen = dataset[i], observation(e, t)
        pixels = (255 * frame["observation.images.wrist"].numpy()).round().astype(np.uint8)
        assert np.array_equal(pixels.transpose(1, 2, 0), seen["wrist"])
        assert np.array_equal(frame["observation.state"].numpy(), seen["state"])
        assert frame["action"].tolist() == [e, -t] and frame["task"] == f"lift cube {e}"
        assert (frame["episode_index"], frame["frame_index"]) == (e, t)
        assert frame["next.reward"] == e + t / 8 and frame["next.done"] == is_last
        assert frame["next.truncated"] == (is_last and ENDINGS[e % 3] != "terminated")
        assert frame["complementary_info.policy_version"] == t
        assert frame["complementary_info.is_intervention"] == t % 2


@pytest.mark.filterwarnings("ignore")
def test_other_observations_and_actions(lerobot, tmp_path):
    def observe(e, t):
        depth = np.full((1, 16, 16, 1), t, np.uint8)
        return {"head": {"rgb": np.full((1, 32, 32, 3), t, np.uint8)}, "depth": depth, "said": "no"}

    to_lerobot([episode(0, 2, observe=observe)], tmp_path / "d", 5, "me/mine", "lift")
    dataset = lerobot("me/mine", root=tmp_path / "d")
    assert {key for key in dataset.features if key.startswith("observation")} == {
        "observation.images.head.rgb",
        "observation.depth",
    }
    assert np.all(dataset[1]["observation.depth"].numpy() == 1)
    bare = [episode(0, 2, observe=lambda e, t: np.float32([t]))]
    to_lerobot(bare, tmp_path / "bare", 5, "me/bare")
    assert lerobot("me/bare", root=tmp_path / "bare")[1]["observation.state"].tolist() == 1


@pytest.mark.filterwarnings("ignore")
def test_videos_are_close_to_what_was_seen(lerobot, tmp_path):
    def observe(e, t):
        return {"wrist": np.full((64, 64, 3), 40 * t + 20 * e, np.uint8)}

    given = [episode(e, 4, observe=observe) for e in range(2)]
    to_lerobot(given, tmp_path / "d", 10, "me/video", video=True)
    dataset = lerobot("me/video", root=tmp_path / "d", video_backend="pyav")
    assert list(tmp_path.rglob("*.mp4"))
    for i in range(8):
        seen = 255 * dataset[i]["observation.images.wrist"].numpy()
        assert np.abs(seen - (40 * (i % 4) + 20 * (i // 4))).max() < 8


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_leaves_nothing(lerobot, tmp_path):
    with pytest.raises(DecodeError, match="no episodes"):
        to_lerobot([], tmp_path / "d", 10)

    def breaks():
        yield episode(0, 3)
        raise OSError("the disk of the source broke")

    with pytest.raises(OSError, match="broke"):
        to_lerobot(breaks(), tmp_path / "d", 10)
    assert not list(tmp_path.iterdir())
    to_lerobot(episodes(LENGTHS), tmp_path / "d", 10)
    with pytest.raises(FileExistsError):
        to_lerobot(episodes(LENGTHS), tmp_path / "d", 10)
    assert lerobot("local/agentlace", root=tmp_path / "d").num_episodes == len(LENGTHS)
