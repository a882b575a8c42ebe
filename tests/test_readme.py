"""Every snippet of the README runs, each as a program of its own."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker

ROOT = Path(__file__).parents[1]
SNIPPETS = dict(
    re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
)
PAIRS = [
    ("robot.py", "policy.py", "(128, 128, 3)", None),
    ("learner.py", "actor.py", "{'thanks': 500}", "500 transitions"),
    ("policy_server.py", "device.py", "array([2., 2., 2., 2.])", None),
]


def start(folder, name):
    return subprocess.Popen(
        [sys.executable, folder / name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until_served(url, process):
    """Wait until a server of this namespace has announced itself."""
    broker = Broker(BrokerURL.parse(url))
    channel = broker.channel()
    while not channel.call("KEYS", f"al:{{{broker.url.namespace}:*}}:server"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            raise AssertionError(process.communicate()[0])
    channel.close()


def test_every_snippet_is_in_a_pair():
    assert {name for pair in PAIRS for name in pair[:2]} == set(SNIPPETS)
    assert len(re.findall("```python", (ROOT / "README.md").read_text())) == len(SNIPPETS)


@pytest.mark.parametrize(("server", "client", "client_says", "server_says"), PAIRS)
def test_pair(server, client, client_says, server_says, tmp_path, broker_environment):
    for name in (server, client):
        (tmp_path / name).write_text(SNIPPETS[name])
    serving = start(tmp_path, server)
    try:
        wait_until_served(broker_environment, serving)
        calling = start(tmp_path, client)
        output, _ = calling.communicate(timeout=60)
        assert calling.returncode == 0, output
        assert client_says in output
        if server_says:
            assert server_says in serving.communicate(timeout=60)[0]
    finally:
        serving.terminate()
        serving.communicate()


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:examples|docs|broker)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
