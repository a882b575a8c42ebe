"""``agentlace rlds convert``: a dataset becomes one of another format, and comes back."""

import gc
import sys

import numpy as np
import pytest

from agentlace.cli import main
from agentlace.rlds.episode import episode_from_transitions
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.writer import DatasetWriter

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Minari's
LENGTHS = (4, 1, 6)


def episode(e, n):
    seen = [np.random.default_rng([e, t]).integers(256, size=(32, 40, 3)) for t in range(n + 1)]
    rows = [
        {
            "observations": {"wrist": seen[t].astype(np.uint8)},
            "next_observations": {"wrist": seen[t + 1].astype(np.uint8)},
            "actions": np.float32([e, t]),
            "rewards": np.float32(t),
            "language_instruction": f"lift cube {e}",
        }
        for t in range(n)
    ]
    return episode_from_transitions(rows, ("terminated", "truncated", "aborted")[e])


@pytest.fixture
def dataset(tmp_path):
    with DatasetWriter(tmp_path, "cube") as writer:
        for e, n in enumerate(LENGTHS):
            writer.append(episode(e, n))
        writer.commit()
    return tmp_path / "cube" / "1.0.0"


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the command in a folder; return its exit code, and what it says to whom."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["agentlace", "rlds", "convert", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    gc.collect()


def test_to_minari_and_back(convert, dataset):
    pytest.importorskip("minari")
    assert convert(dataset, "test/cube-v0", "--to", "minari") == (
        0,
        "3 episodes in test/cube-v0\n",
        "",
    )
    code, said, _ = convert("test/cube-v0", "back/cube", "--from", "minari", "--version", "2.0.0")
    assert (code, said) == (0, "3 episodes in back/cube\n")
    back = DatasetReader("back/cube/2.0.0").episodes()
    for found, wanted in zip(back, DatasetReader(dataset).episodes(), strict=True):
        assert found.ending == wanted.ending
        for step, other in zip(found.steps, wanted.steps, strict=True):
            assert step.keys() == other.keys()
            assert np.array_equal(step["observation"]["wrist"], other["observation"]["wrist"])
            for key in step.keys() - {"observation"}:
                assert np.array_equal(step[key], other[key])


def test_nothing_is_replaced(convert, dataset):
    pytest.importorskip("minari")
    assert convert(dataset, "test/cube-v0", "--to", "minari")[0] == 0
    code, _, said = convert(dataset, "test/cube-v0", "--to", "minari")
    assert code == 1 and "already" in said and said.count("\n") == 1
    code, _, said = convert("test/cube-v0", "cube", "--from", "minari")
    assert code == 1 and "has 3 episodes already" in said
    assert len(DatasetReader(dataset)) == 3


def test_what_is_asked_wrongly(convert, dataset):
    for formats in ([], ["--to", "minari", "--from", "minari"]):
        code, _, said = convert(dataset, "test/x-v0", *formats)
        assert code == 1 and "either --to or --from" in said
    code, _, said = convert("elsewhere", "test/x-v0", "--to", "minari")
    assert code == 1 and "no dataset in elsewhere" in said
    code, _, said = convert(dataset, "lerobot", "--to", "lerobot")
    assert code == 1 and "pass --fps" in said
    code, _, said = convert("test/none-v0", "x", "--from", "minari")
    assert code == 1 and said.count("\n") == 1


def test_lerobot_needs_an_environment_of_its_own(convert, dataset, monkeypatch, tmp_path):
    for name in ("lerobot", "lerobot.datasets", "lerobot.datasets.lerobot_dataset"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, said = convert(dataset, "out", "--to", "lerobot", "--fps", "10")
    assert code == 1 and "pip install 'lerobot" in said
    assert not (tmp_path / "out").exists()
