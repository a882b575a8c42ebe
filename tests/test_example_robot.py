"""The example of an arm whose policy is slow, as real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "async_robot.py"

pytest.importorskip("mujoco", reason="the examples need the extra 'examples'")
pytest.importorskip("matplotlib", reason="the examples need the extra 'examples'")


def test_the_arm_follows_only_with_the_chunk_client(tmp_path, broker_environment):
    command = [sys.executable, EXAMPLE, "--seconds", "3", "--run_dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    waiting, chunked = summary["waiting"], summary["chunked"]
    assert summary["latency_ms"] > 150
    assert chunked["rms_error_mm"] < waiting["rms_error_mm"]
    assert chunked["mean_torque_jump"] < waiting["mean_torque_jump"]
    if chunked["underruns"] == 0:  # the drive is in real time, on a machine that may be busy
        assert chunked["largest_error_mm"] < 10 < waiting["largest_error_mm"]
    assert (tmp_path / "async_robot.png").stat().st_size > 10_000


def test_no_policy_server_is_told(tmp_path, broker_environment):
    code = "import async_robot as a; a.CONNECT_S = 0.5; a.main(['--robot', '--run_dir', 'x'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLE.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "no policy server within 0.5 s" in done.stderr
