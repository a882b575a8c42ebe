"""A password shows up nowhere: no log, no repr, no error, no traceback, no process list."""

import contextlib
import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

from .support import ROOT, Program

PASSWORD = "geheim-b7%c5f&0"
QUOTED = "geheim-b7%25c5f%260"
ACTION = ActionConfig(5556, ["move"], ["image"], broadcast_port=5557)

SESSION = """
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker
config = ActionConfig(5556, ["move"], ["image"], broadcast_port=5557)
server = ActionServer(config, lambda keys: {"image": 1}, lambda key, payload: 1 / 0)
server.start(threaded=True)
client = ActionClient("x", config)
print(client.obs(), client.act("move"), client.last_error)
client.register_obs_callback(print)
server.publish_obs({"image": 2})
broker = Broker(BrokerURL.resolve(None))
for thing in (client, server, broker, broker.url, broker.channel(), config):
    print(repr(thing), str(thing))
print("ready", flush=True)
sys.stdin.readline()
try:
    client.strict = True
    client.timeout_ms = 100
    client.obs()
except Exception:
    traceback.print_exc()
print("over", flush=True)
"""


def is_told(text):
    return any(secret in text for secret in (PASSWORD, QUOTED, PASSWORD.encode().hex()))


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().decode(errors="replace")


@pytest.mark.parametrize("place", ["file", "address"])
def test_a_whole_session(tmp_path, place):
    """A server of its own starts the broker, which the session loses in the middle."""
    port = free_port()
    address = f"redis://127.0.0.1:{port}"
    environment = {"AGENTLACE_EMBEDDED_LINGER_S": "1"}
    if place == "file":
        (tmp_path / "password").write_text(PASSWORD)
        environment["AGENTLACE_PASSWORD_FILE"] = str(tmp_path / "password")
    else:
        address = f"redis://:{QUOTED}@127.0.0.1:{port}"
    with Program(SESSION, broker=address, **environment) as program:
        program.line("ready")
        lines = list(command_lines())
        assert any(f":{port}" in line for line in lines)
        assert not [line for line in lines if is_told(line)]
        broker = Broker(BrokerURL("redis", "127.0.0.1", port, password=PASSWORD))
        with contextlib.closing(broker.channel()) as channel, contextlib.suppress(AgentlaceError):
            channel.call("SHUTDOWN", "NOSAVE")
        program.tell("go on")
        program.line("over")
        said = "\n".join(program.lines)
    assert "***" in said and "Traceback" in said and "ZeroDivisionError" in said
    assert not is_told(said)


@pytest.fixture(scope="module")
def guarded():
    with EmbeddedBroker(Settings(port=free_port(), password="another")) as broker:
        yield broker.settings.port


def fails(call, caplog):
    with pytest.raises(AgentlaceError) as caught:
        call()
    error = caught.value
    said = [*traceback.format_exception(error), repr(error), str(vars(error)), caplog.text]
    assert not is_told("".join(said))


@pytest.mark.parametrize("login", [f"robot:{QUOTED}@", f":{QUOTED}@"])
def test_every_way_to_fail(guarded, login, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    addresses = [f"redis://{login}127.0.0.1:{guarded}", f"redis://{login}127.0.0.1:{free_port()}"]
    addresses += [f"rediss://{login}127.0.0.1:{guarded}?ca_file=/nowhere"]
    addresses += [f"rediss://{login}127.0.0.1:{guarded}", f"unix://{login}{tmp_path}/none.sock"]
    for address in addresses:
        with contextlib.closing(Broker(BrokerURL.parse(address)).channel(0.3)) as channel:
            fails(lambda channel=channel: channel.call("PING"), caplog)
    refused = addresses[0]
    with ActionServer(ACTION, None, None, broker=refused) as server:
        fails(lambda: server.start(threaded=True), caplog)
    fails(lambda: ActionClient("x", ACTION, broker=refused), caplog)


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PASSWORD}@host:port",
        f"redis://:{PASSWORD}@host/zero",
        f"redis://:{PASSWORD}@[host",
        f"redis://:{PASSWORD}\u2100@host",
        f"http://:{PASSWORD}@host",
        f"redis://:{PASSWORD}@host?ns={{}}",
        f"redis://:{PASSWORD}/@host",
    ],
)
def test_addresses_that_cannot_be_read(address):
    with pytest.raises(ValueError) as caught:
        BrokerURL.parse(address)
    assert not is_told(str(caught.value))
    assert not is_told(repr(caught.value.__cause__) + repr(caught.value.args))


def test_the_command_line(tmp_path):
    """The error of a command that cannot connect or start, too."""
    (tmp_path / "password").write_text(PASSWORD)
    command = [sys.executable, "-m", "agentlace", "broker", "--host", "192.0.2.1"]
    command += ["--password-file", str(tmp_path / "password")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert not is_told(done.stdout + done.stderr)
