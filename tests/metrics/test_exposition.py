"""What Prometheus reads, from one process and of the whole system, with its own parser."""

import os
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from agentlace import ActionClient, ActionConfig, ActionServer, metrics
from agentlace.cli.app import app
from agentlace.errors import AgentlaceError
from agentlace.metrics.exposition import Families
from agentlace.operating.prometheus import SYSTEM, exposition
from agentlace.telemetry import METRICS, Sample
from tests.operating.test_snapshot import system
from tests.services.support import free_port

CONFIG = ActionConfig(port_number=5601, action_keys=["move"], observation_keys=["joints"])


def read(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return parsed(answer.read().decode())


def parsed(text):
    """Return the samples by name, each as (labels, value), and the kinds of the families."""
    samples, kinds = {}, {}
    for family in text_string_to_metric_families(text):
        kinds[family.name] = family.type
        assert family.documentation, family.name
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples, kinds


def test_a_process_serves_its_nodes(running, broker_url):
    server = running(ActionServer(CONFIG, None, lambda key, payload: payload, broker=broker_url))
    server.start(threaded=True)
    client = running(ActionClient("localhost", CONFIG, broker=broker_url))
    with metrics.serve(port=0) as endpoint:
        client.act("move", {})
        client.act("move", {})
        samples, kinds = read(endpoint.url)
        (labels, answered) = samples["agentlace_requests_answered_total"][0]
        assert (labels["service"], labels["role"], answered) == ("action:5601", "action", 2)
        made = {labels["role"]: v for labels, v in samples["agentlace_requests_made_total"]}
        assert made == {"client of action": 2}
        assert kinds["agentlace_requests_answered"] == "counter"
        client.stop()
        assert "agentlace_requests_made_total" not in read(endpoint.url)[0]


def test_a_taken_port_is_named(broker_url):
    with metrics.serve(port=0) as endpoint:
        with pytest.raises(AgentlaceError, match=f"127.0.0.1:{endpoint.port}: .*another port"):
            metrics.serve(endpoint.port)
    with pytest.raises(AgentlaceError, match="99999"):
        metrics.serve(99999)


PROGRAM = """
import sys
from agentlace import ActionConfig, ActionServer
config = ActionConfig(5602, ["move"], ["joints"])
with ActionServer(config, None, None) as server:
    server.start(threaded=True)
    print("up", flush=True)
    sys.stdin.read()
"""


def test_the_environment_asks_for_an_endpoint(broker_url):
    port = free_port()
    environment = {
        **os.environ,
        "AGENTLACE_BROKER": broker_url,
        "AGENTLACE_METRICS_PORT": str(port),
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(run, env=environment, text=True, **pipes) as first:
        assert first.stdout.readline() == "up\n"
        samples, _ = read(f"http://127.0.0.1:{port}/metrics")
        assert samples["agentlace_requests_answered_total"][0][0]["service"] == "action:5602"
        # A second process of the same environment runs all the same, and says what is taken.
        program = PROGRAM.replace("5602", "5603")
        with subprocess.Popen(
            [sys.executable, "-c", program], env=environment, text=True, **pipes
        ) as second:
            assert second.stdout.readline() == "up\n"
            assert f"127.0.0.1:{port}" in second.communicate()[1]
        first.communicate()


def test_the_whole_system(running, found, broker_url):
    server, *_ = system(running, broker_url)
    server.publish_network({"w": np.zeros(3)})
    server.telemetry.report({'a "quoted"\nname': 2.0})
    snapshot = found(
        lambda s: s.server("trainer:5555").value("reported") == 2.0 and not s.stores[0].behind,
        "the trainer's numbers",
    )
    samples, kinds = parsed(exposition(snapshot).decode())
    applied = {labels["store"]: v for labels, v in samples["agentlace_transitions_applied_total"]}
    assert applied == {"env": 20}
    assert {(labels["role"], v) for labels, v in samples["agentlace_up"]} == {
        ("trainer", 1),
        ("actor", 1),
    }
    (labels, lag) = samples["agentlace_consumer_lag_transitions"][0]
    assert (labels["store"], lag) == ("env", 0)
    assert samples["agentlace_reported"][0][0]["name"] == 'a "quoted"\nname'
    assert samples["agentlace_broker_memory_bytes"][0][1] > 0
    assert {"agentlace_stream_bytes", "agentlace_stream_budget_bytes"} <= samples.keys()
    assert all(kind in ("counter", "gauge") for kind in kinds.values())


def test_the_command_prints_once(running, found, broker_url):
    system(running, broker_url)
    found(lambda s: s.server("trainer:5555"), "the trainer")
    result = CliRunner().invoke(app, ["metrics", "--broker", broker_url])
    assert result.exit_code == 0, result.output
    assert "agentlace_up" in parsed(result.output)[0]


def test_the_command_serves(broker_url):
    run = [sys.executable, "-m", "agentlace", "metrics", "--port", "0", "--broker", broker_url]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[1]
        assert read(url)[0]["agentlace_broker_uptime_seconds"]
        process.send_signal(2)
        process.communicate()
    assert process.returncode in (0, 130)


def test_names_of_other_versions_are_gauges_and_bad_ones_left_out():
    families = Families()
    families.add([Sample("of_the_future", 1.0), Sample("bad name{}", 1.0)], {})
    (family,) = families.all()
    assert (family.name, family.type) == ("agentlace_of_the_future", "gauge")


def test_names_follow_the_conventions():
    for name, metric in {**METRICS, **SYSTEM}.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
    assert not METRICS.keys() & SYSTEM.keys()
