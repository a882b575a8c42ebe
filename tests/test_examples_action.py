"""The action examples as real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("gymnasium", reason="the examples need the extra 'examples'")
pytest.importorskip("cv2", reason="the examples need the extra 'examples'")


def start(*args):
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=60):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return json.loads(next(line for line in reversed(output.splitlines()) if line[:1] == "{"))


@pytest.fixture
def cleanup():
    processes = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["action_streamer.py", "action_cartpole_env.py"])
def test_help(name):
    output = subprocess.check_output([sys.executable, EXAMPLES / name, "--help"], text=True)
    assert "--server" in output and "--client" in output


def test_streamer_saves_frames_and_measures(tmp_path, broker_environment, cleanup):
    import cv2

    server = start(EXAMPLES / "action_streamer.py", "--server", "--fps", 30)
    cleanup.append(server)
    flags = ["--client", "--headless", "--out", tmp_path, "--seconds", 4]
    client = start(EXAMPLES / "action_streamer.py", *flags)
    cleanup.append(client)
    summary = finish(client)
    files = sorted(tmp_path.glob("*.jpg"))
    assert len(files) == summary["frames"] > 10
    assert summary["fps"] > 0
    assert 0 < summary["median_loop_ms"] < 1000
    first, last = cv2.imread(str(files[0])), cv2.imread(str(files[-1]))
    assert first.ndim == 3 and first.shape == last.shape
    assert (first != last).any(), "the video does not move"


def test_cartpole_is_balanced_from_another_process(broker_environment, cleanup):
    server = start(EXAMPLES / "action_cartpole_env.py", "--server")
    cleanup.append(server)
    assert "serving" in server.stdout.readline()
    remote = start(EXAMPLES / "action_cartpole_env.py", "--client", "--episodes", 2, "--seed", 3)
    cleanup.append(remote)
    local = start(EXAMPLES / "action_cartpole_env.py", "--episodes", 2, "--seed", 3)
    cleanup.append(local)
    summary = finish(remote)
    assert summary["returns"] == finish(local)["returns"]
    assert min(summary["returns"]) > 100


def test_cartpole_server_ends_with_ctrl_c(broker_environment, cleanup):
    server = start(EXAMPLES / "action_cartpole_env.py", "--server")
    cleanup.append(server)
    assert "serving" in server.stdout.readline()
    server.send_signal(2)
    output, _ = server.communicate(timeout=10)
    assert server.returncode == 0, output
    assert "Traceback" not in output
