"""The example of a batched Flax policy with three clients, as real processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker

EXAMPLE = Path(__file__).parents[1] / "examples" / "inference_server.py"
ROOT = str(EXAMPLE.parents[1])

pytest.importorskip("flax", reason="the examples need the extra 'examples'")


def environment():
    return {**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}


@pytest.fixture
def run():
    """Start the example with flags; what still runs at the end is killed."""
    programs = []

    def run(*flags):
        program = subprocess.Popen(
            [sys.executable, EXAMPLE, *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        programs.append(program)
        return program

    yield run
    for program in programs:
        with program:
            if program.poll() is None:
                program.terminate()


def test_three_clients_share_batches_and_follow_the_trainer(run, tmp_path, broker_environment):
    # Long enough for a second network of the trainer; a batch waits until it has company.
    program = run("--seconds", "2.5", "--max_wait_ms", "20", "--run_dir", tmp_path)
    output, _ = program.communicate(timeout=100)
    assert program.returncode == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert output.splitlines()[-1] == json.dumps(summary)
    clients, batches = summary["clients"], summary["batches"]
    assert len(clients) == 3 and all(client["calls"] for client in clients), output
    assert [client["failed"] for client in clients] == [0, 0, 0], output
    calls = sum(client["calls"] for client in clients)
    assert sum(batches.values()) < calls <= sum(int(size) * n for size, n in batches.items())
    assert sum(summary["policies"].values()) == calls
    assert sum("network" in name for name in summary["policies"]) > 1, output
    for says in ("client 3: ", "calls per second", "batches: ", "answers of: policy@1"):
        assert says in output


def test_ctrl_c_ends_all_of_it(run, tmp_path, broker_environment):
    program = run("--seconds", "60", "--run_dir", tmp_path)
    lines = []
    for line in program.stdout:
        lines.append(line)
        if "serving the policy" in line:
            break
    os.killpg(program.pid, signal.SIGINT)
    output, _ = program.communicate(timeout=10)
    assert program.returncode == 130, "".join(lines) + output
    assert "Traceback" not in output
    broker = Broker(BrokerURL.parse(broker_environment))
    channel = broker.channel()
    assert channel.call("KEYS", f"al:{{{broker.url.namespace}:*}}:server") == []
    channel.close()


def test_no_policy_server_is_told(tmp_path, broker_environment):
    code = "import inference_server as a; a.CONNECT_S = 0.5; a.main(['--client'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(EXAMPLE.parent), ROOT])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "no policy server within 0.5 s" in done.stderr


def test_help_needs_no_jax():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", EXAMPLE, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "--clients" in done.stdout
    assert " jax" not in done.stderr
