"""Hostile frames for a minute, in a process of its own; ``make fuzz`` takes ten minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform != "linux", reason="reads its size from /proc")
def test_hostile_peers_harm_nobody_else():
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=220)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    names = {"Decoder", "Requests", "Streams", "Presence", "Weights", "Broadcast"}
    assert found["examples"].keys() == names
    assert found["total"] >= 300
