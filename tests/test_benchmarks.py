"""The benchmarks run and write what the report reads. No timing is asserted."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.__main__ import main
from benchmarks.rows import ALL

ROOT = Path(__file__).resolve().parents[1]
ROW = "obs_64k"


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = run("--only", ROW, "--quick", "--results", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def result(results):
    return json.loads((results / f"{ROW}.json").read_text())


def test_a_result_says_where_and_of_what_it_is(result):
    assert result["row"] == ROW and result["quick"] is True
    machine = result["machine"]
    assert {"date", "commit", "cpu", "cores", "python", "versions"} <= machine.keys()
    assert {"agentlace", "numpy", "redis"} <= machine["versions"].keys()


def test_a_result_has_every_contestant_or_why_it_is_absent(result):
    (case,) = result["cases"]
    names = {"agentlace", "earlier wire", "list echo", "memcpy"}
    assert case["contestants"].keys() | result["absent"].keys() == names
    assert "agentlace" not in result["absent"]
    for metrics in case["contestants"].values():
        numbers = metrics["us"]
        assert len(numbers["rounds"]) == 2
        assert 0 < numbers["iqr"][0] <= numbers["median"] <= numbers["iqr"][1]
        assert numbers["p99"] >= numbers["median"]


def test_a_row_that_cannot_be_measured_here_says_why(tmp_path, capsys, monkeypatch):
    row = dataclasses.replace(ALL["prefetch_images"], missing=lambda: "it needs a GPU")
    monkeypatch.setitem(ALL, row.name, row)
    assert main(["--only", row.name, "--results", str(tmp_path)]) == 0
    assert "skipped: it needs a GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_goal_has_a_ratio_and_a_verdict_unless_nobody_is_there(result):
    (goal,) = result["cases"][0]["goals"]
    assert goal["least"] == 2.0 and goal["unit"] == "x"
    if "earlier wire" in result["absent"]:
        assert goal["value"] is None and goal["reached"] is None
    else:
        assert goal["reached"] is (goal["value"] >= 2.0)


def test_the_report_keeps_what_was_written_by_hand(results, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra 'examples'")
    page = tmp_path / "performance.md"
    for _ in range(2):
        done = run("--report", "--results", results, "--docs", tmp_path)
        assert done.returncode == 0, done.stderr
        text = page.read_text().removeprefix("By hand, above.\n").removesuffix("By hand, below.\n")
        page.write_text(f"By hand, above.\n{text}By hand, below.\n")
    assert text.count("## Goals") == 1 and "obs of 64 KiB" in text
    assert (tmp_path / "performance.png").stat().st_size > 1000


def test_an_unknown_row_is_refused():
    done = run("--only", "no_such_row")
    assert done.returncode == 2 and ROW in done.stderr


def test_learning_reports_and_does_not_repeat_runs_that_are_there(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra 'examples'")
    path = tmp_path / "learning.json"
    flags = ["--steps", "2000", "--seeds", "0", "1", "--results", str(path)]
    wanted = learning.settings(learning.parse(flags))
    runs = [
        {
            "mode": mode,
            "seed": seed,
            "settings": settings,
            "updates": 2000,
            "final_return": final,
            "curve": [[1000, -100.0], [2000, final]],
            "wall_s": 60.0,
            "machine": learning.machine.describe(),
        }
        for settings in (wanted, {**wanted, "steps": 1000})
        for mode, finals in (("two processes", (300.0, 500.0)), ("one process", (-50.0, 850.0)))
        for seed, final in enumerate(finals)
    ]
    learning.save(path, runs)
    command = [sys.executable, "-m", "benchmarks.learning", *flags]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there") == 4 and learning.load(path) == runs
    text = (tmp_path / "performance.md").read_text()
    assert text.count("## Learning") == 1
    assert "| 0 | 300 | -50 | - | 60 s | 60 s | 1x |" in text
    assert "| mean | 400 | 400 | 1x | 60 s | 60 s | 1x |" in text
    assert (tmp_path / "learning.png").stat().st_size > 1000


def test_learning_without_results_says_so(tmp_path):
    command = [sys.executable, "-m", "benchmarks.learning", "--report"]
    command += ["--results", str(tmp_path / "learning.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "has no run" in done.stderr
