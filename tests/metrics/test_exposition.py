"""What Prometheus reads, from one process and of the whole system, with its own parser."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.operating.test_snapshot import system
from tests.ports import free_port
from tests.services.support import wait_until

CONFIG = ActionConfig(port_number=5601, action_keys=["move"], observation_keys=["joints"])


def page(port):
    return f"http://127.0.0.1:{port}/metrics"


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


def test_a_node_serves_its_own_numbers_until_it_stops(running, broker_url):
    server = running(ActionServer(CONFIG, None, lambda key, payload: payload, broker=broker_url))
    server.start(threaded=True)
    client = running(ActionClient("localhost", CONFIG, broker=broker_url))
    of_server, of_client = (page(node.serve_metrics(port=0)) for node in (server, client))
    assert "agentlace_requests_made_total" not in read(of_server)[0]
    assert "agentlace_requests_answered_total" not in read(of_client)[0]
    client.stop()
    with pytest.raises(urllib.error.URLError):
        read(of_client)
    server.stop()
    with pytest.raises(urllib.error.URLError):
        read(of_server)


def test_many_read_while_nodes_come_and_go(running, broker_url):
    """The threads of scrapers, heartbeats and programs meet."""
    server = running(ActionServer(CONFIG, None, lambda key, payload: payload, broker=broker_url))
    server.start(threaded=True)
    with metrics.serve(port=0) as endpoint, ThreadPoolExecutor(8) as pool:

        def scrape():
            return [len(read(endpoint.url)[0]) for _ in range(20)]

        def come_and_go():
            for number in range(5):
                with ActionClient("localhost", CONFIG, broker=broker_url) as client:
                    client.telemetry.report({f"loss {number}": number})
                    assert client.act("move", number) == number

        tasks = [pool.submit(task) for task in [scrape] * 4 + [come_and_go] * 4]
        for task in tasks:
            task.result(timeout=60)
    assert all(min(task.result()) > 0 for task in tasks[:4])


def test_a_taken_port_is_named(running, broker_url):
    server = running(ActionServer(CONFIG, None, None, broker=broker_url))
    with metrics.serve(port=0) as endpoint:
        with pytest.raises(AgentlaceError, match=f"127.0.0.1:{endpoint.port}: .*another port"):
            server.serve_metrics(endpoint.port)
    assert server.serve_metrics(endpoint.port) == endpoint.port
    with pytest.raises(AgentlaceError, match="99999"):
        metrics.serve(99999)
    with pytest.raises(AgentlaceError, match=r"192\.0\.2\.1"):
        metrics.serve(0, "192.0.2.1")


@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
def test_a_forked_child_leaves_the_port_to_its_parent(running, broker_url):
    server = running(ActionServer(CONFIG, None, None, broker=broker_url))
    port = server.serve_metrics(port=0)
    child = multiprocessing.get_context("fork").Process(target=rest, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        child.start()
    try:
        server.stop()
        metrics.serve(port).close()  # the child does not listen there
    finally:
        child.kill()
        child.join()


def rest():
    threading.Event().wait()


PROGRAM = """
import sys
from agentlace import ActionConfig, ActionServer
config = ActionConfig(5602, ["move"], ["joints"])
with ActionServer(config, None, None) as server:
    server.start(threaded=True)
    print("up", flush=True)
    sys.stdin.readline()
print("down", flush=True)
sys.stdin.readline()
"""


def test_the_environment_asks_for_an_endpoint(broker_url):
    port = free_port()
    with program(PROGRAM, broker_url, port) as first:
        assert first.stdout.readline() == "up\n"
        samples, _ = read(page(port))
        assert samples["agentlace_requests_answered_total"][0][0]["service"] == "action:5602"
        # A second process of the same environment runs all the same, and says what is taken.
        with program(PROGRAM.replace("5602", "5603"), broker_url, port) as second:
            assert second.stdout.readline() == "up\n"
            assert f"127.0.0.1:{port}" in second.communicate("\n\n")[1]
        print(file=first.stdin, flush=True)
        assert first.stdout.readline() == "down\n"
        with pytest.raises(urllib.error.URLError):  # its last node has stopped
            read(page(port))
        first.communicate("\n")


@pytest.mark.parametrize("asked", ["http", "-1"])
def test_an_environment_that_asks_for_nonsense(broker_url, asked):
    with program(PROGRAM, broker_url, asked) as process:
        assert process.stdout.readline() == "up\n"
        assert f"AGENTLACE_METRICS_PORT={asked}" in process.communicate("\n\n")[1].replace("'", "")


def program(text, broker_url, port):
    """Start a program of one node, whose environment asks for its metrics."""
    asked = {"AGENTLACE_BROKER": broker_url, "AGENTLACE_METRICS_PORT": str(port)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = [sys.executable, "-c", text]
    return subprocess.Popen(run, env={**os.environ, **asked}, text=True, **pipes)


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


def test_a_server_that_is_gone_is_down_and_has_no_numbers(running, look, found, broker_url):
    server = running(ActionServer(CONFIG, None, None, broker=broker_url))
    server.start(threaded=True)
    found(lambda s: s.server("action:5601") and s.server("action:5601").samples, "its numbers")
    server.stop()
    samples, _ = parsed(exposition(look()).decode())
    ((labels, is_up),) = samples["agentlace_up"]
    assert (labels["service"], is_up) == ("action:5601", 0)
    assert "agentlace_requests_answered_total" not in samples
    assert "agentlace_node_info" not in samples


def test_servers_of_one_name_are_told_apart(running, found, broker_url):
    server = running(ActionServer(CONFIG, None, None, broker=broker_url))
    server.start(threaded=True)
    snapshot = found(lambda s: s.server("action:5601"), "the server")
    (peer,) = snapshot.peers
    both = replace(snapshot, peers=(peer, replace(peer, pid=peer.pid + 1, token="another")))
    samples, _ = parsed(exposition(both).decode())
    nodes = [labels["node"] for labels, _ in samples["agentlace_up"]]
    assert nodes == [f"action:5601#{peer.pid}", f"action:5601#{peer.pid + 1}"]


def test_a_broker_that_goes_away_is_told_and_comes_back():
    settings = Settings(port=free_port())
    port = free_port()
    with EmbeddedBroker(settings):
        process = serving(port, f"redis://127.0.0.1:{settings.port}")
        assert read(page(port))[0]["agentlace_broker_up"] == [({}, 1)]
    try:
        seen = wait_until(lambda: away(read(page(port))[0]), what="that the broker is away")
        assert seen.keys() == {"agentlace_broker_up"}
        with EmbeddedBroker(settings):
            wait_until(lambda: not away(read(page(port))[0]), what="the broker's return")
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode in (0, 130) and "Traceback" not in said


def away(samples):
    return samples if samples["agentlace_broker_up"] == [({}, 0)] else None


def test_the_command_serves(broker_url):
    process = serving(0, broker_url)
    try:
        assert read(process.url)[0]["agentlace_broker_uptime_seconds"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode in (0, 130)


def serving(port, broker_url):
    """Start ``agentlace metrics``; it serves at its ``url``."""
    run = [sys.executable, "-m", "agentlace", "metrics", "--broker", broker_url, "--port"]
    process = subprocess.Popen(
        [*run, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.url = re.search(r"http://\S+", process.stdout.readline())[0]
    return process


def test_what_would_spoil_the_page_is_left_out():
    families = Families()
    names = [Sample("of_the_future", 1.0), Sample("of_the_future", 2.0), Sample("bad name{}", 1.0)]
    families.add([*names, Sample("store_size", 1.0, {'bad "label"': "x"})], {})
    (family,) = families.all()
    assert (family.name, family.type) == ("agentlace_of_the_future", "gauge")
    assert [sample.value for sample in family.samples] == [1.0]


def test_names_follow_the_conventions():
    for name, metric in {**METRICS, **SYSTEM}.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
    assert not METRICS.keys() & SYSTEM.keys()
