"""``agentlace bench``: measures, stays within bounds, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from agentlace.cli import bench_rows
from agentlace.cli.app import app
from agentlace.cli.bench import NORMAL
from agentlace.cli.bench_rows import MEASURES, Bench, rows
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerUnreachable
from tests.operating.doctoring import channel_to, setting
from tests.ports import free_port
from tests.services.secured import SecuredBroker, servers
from tests.services.support import ROOT, wait_until

SHORT = ("--seconds", "0.3")


@pytest.fixture
def keys(broker_url):
    """Return a function that returns the keys of all benchmarks."""
    with channel_to(broker_url) as channel:
        yield lambda: channel.call("KEYS", "al:{bench-*")


def bench(*arguments, status=0):
    done = CliRunner().invoke(app, ["bench", *SHORT, *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def test_all_is_measured_and_removed(broker_url, keys):
    told = json.loads(bench("--json", "--broker", broker_url))
    assert [row["name"] for row in told["rows"]] == list(MEASURES) == list(NORMAL)
    for row in told["rows"]:
        assert row["count"] >= 1 and not row["missing"]
        assert 0 < row["median_ms"] <= row["p99_ms"]
        assert row["per_s"] > 0
        is_large = row["name"].endswith("B")
        assert (row["mb_per_s"] > 0) == is_large
    assert keys() == []


def test_what_people_read(broker_url, keys):
    text = bench("--broker", broker_url)
    for name, usual in NORMAL.items():
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert " ms" in line and all(one in line for one in usual)
    assert "over its Unix socket" in text and "over Wi-Fi" in text


def test_a_cluster(session_cluster):
    told = json.loads(bench("--json", "--broker", session_cluster.url))
    assert not any(row["missing"] for row in told["rows"])
    for node in session_cluster.masters:
        assert node.client.keys("al:{bench-*") == []


def test_no_broker():
    with pytest.raises(BrokerUnreachable):
        bench("--broker", f"redis://127.0.0.1:{free_port()}")


def test_a_broker_with_little_room(embedded_broker, broker_url, keys):
    with setting(broker_url, "maxmemory", "100mb"):
        with pytest.raises(AgentlaceError, match="it is left alone"):
            bench("--broker", broker_url)
    assert keys() == []


def test_bytes_are_bounded(broker_url, monkeypatch):
    monkeypatch.setattr(bench_rows, "MAX_TRANSITION_BYTES", 4 << 20)
    with Bench(BrokerURL.parse(broker_url), 60.0) as made:
        found = bench_rows.transitions(made)
    assert found.count == (4 << 20) // (8 * bench_rows.TRANSITION_BYTES) - 1


def test_a_user_without_the_rights(tmp_path):
    with SecuredBroker(tmp_path / "broker", next(iter(servers()))) as broker:
        told = json.loads(bench("--json", "--broker", broker.url("actor"), status=1))
        missing = {row["name"]: row["missing"] for row in told["rows"] if row["missing"]}
        assert set(missing) == {"transitions, 98 kB", "network, 5 MB"}
        assert all("user 'actor' may not do 'SET" in reason for reason in missing.values())
        text = bench("--broker", broker.url("observer"), status=1)
        assert "act                not measured: user 'observer' may not do" in text
        with broker.channel("admin") as channel:
            left = [bytes(key) for key in channel.call("KEYS", "*")]
            assert all(channel.call("PTTL", key) <= 60_000 for key in left), left
            assert all(channel.call("PTTL", key) > 0 for key in left), left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(broker_url, keys, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "agentlace", "bench", "--seconds", "6"],
        env={**os.environ, "AGENTLACE_BROKER": broker_url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert "the broker at" in process.stdout.readline()
        wait_until(keys, what="keys of a benchmark")
        process.send_signal(number)
        assert process.wait(20) == 130, process.stdout.read()
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert keys() == []


def test_each_row_is_announced(broker_url):
    names = []
    with Bench(BrokerURL.parse(broker_url), 0.01) as made:
        assert [row.name for row in rows(made, names.append)] == names == list(MEASURES)
