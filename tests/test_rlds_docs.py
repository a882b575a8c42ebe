"""Every snippet of docs/rlds.md runs, in their order and in one folder.

But for the one with TensorFlow, which tests/data/test_tfds_tensorflow.py runs.
"""

import gc
import re
import runpy
import shlex
from pathlib import Path

import pytest

from agentlace.cli.app import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "rlds.md").read_text()
SNIPPETS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^(agentlace .*)$", TEXT, re.MULTILINE)
SAYS = {
    "record.py": "data/cube/1.0.0",
    "fill.py": "20 (32, 64, 64, 3)\n16 dict_keys(['rewards', 'masks', 'dones'])\n(32, 7)",
    "demos.py": "20 transitions",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("name", SAYS)
def test_snippet(name, folder, monkeypatch, capsys):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.chdir(folder)
    Path(name).write_text(SNIPPETS[name])
    runpy.run_path(name)
    assert capsys.readouterr().out.strip() == SAYS[name]


def test_every_snippet_is_run():
    assert list(SNIPPETS) == [*SAYS, "loader.py"]
    assert len(re.findall("```python", TEXT)) == len(SNIPPETS)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Minari's
def test_conversions(folder, monkeypatch, capsys):
    pytest.importorskip("minari")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    for command in [c for c in COMMANDS if "minari" in c]:
        app(shlex.split(command)[1:], standalone_mode=False)
    gc.collect()
    said = capsys.readouterr().out
    assert said == "2 episodes in cube/demos-v0\n2 episodes in data/again\n"


def test_files_that_it_names_exist():
    for path in re.findall(r"`(?:pytest )?(tests/[\w./]*)`", TEXT):
        assert (ROOT / path).exists(), path
