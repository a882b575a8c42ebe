"""openpi's own client, from PyPI, calls an interface."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlace import InferenceClient, InferenceServer
from agentlace.errors import DecodeError, EncodeError

from .support import ROOT, InThread, Log, Program, assert_same, wait_until

pytest.importorskip("websockets", reason="openpi's protocol needs the extra 'openpi'")
from agentlace.inference.openpi import messages
from agentlace.inference.openpi.server import OpenpiServer

# Its client connects in a way that newer releases of websockets want to be written otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")

PORT = 5600
CLIENT = "openpi-client==0.1.2"
OBSERVATION = {
    "observation/image": np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3),
    "observation/state": np.arange(8, dtype=np.float32),
    "prompt": "pick up the cube",
}


@pytest.fixture(scope="session")
def openpi_client(tmp_path_factory):
    """Where openpi's client is installed. Without its dependencies: it pins an old numpy."""
    folder = tmp_path_factory.mktemp("openpi")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--target", str(folder), CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.skip(f"{CLIENT} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture
def connect(openpi_client, monkeypatch, running):
    """Return a function that connects openpi's client."""
    monkeypatch.syspath_prepend(str(openpi_client))
    module = importlib.import_module("openpi_client.websocket_client_policy")

    def connect(port, **kwargs):
        policy = module.WebsocketClientPolicy("127.0.0.1", port, **kwargs)
        running(contextlib.closing(policy._ws))
        return policy

    return connect


@pytest.fixture
def policy_server(running, broker_url):
    def policy_server(fn, **settings):
        server = running(InferenceServer(PORT, broker=broker_url))
        server.register_interface("policy", fn, **settings)
        server.start(threaded=True)
        return server

    return policy_server


@pytest.fixture
def bridge(running, broker_url):
    """Return a function that starts a bridge and returns its port."""
    stops = []

    def bridge(name="policy", timeout_ms=10_000, **kwargs):
        client = running(InferenceClient("localhost", PORT, timeout_ms, broker=broker_url))
        server, addresses = OpenpiServer(client, name, port=0, **kwargs), Log()
        thread = InThread(lambda: server.run(addresses))
        stops.append((server, thread))
        wait_until(lambda: addresses or not thread.is_running, what="the bridge")
        return int(addresses[0].rpartition(":")[2])

    yield bridge
    for server, thread in stops:
        server.stop()
        thread.result(timeout_s=5)


def test_openpis_client_gets_actions(connect, policy_server, bridge):
    seen = Log()

    def act(payload):
        seen(payload)
        return {"actions": np.full((16, 7), payload["observation/state"][1], np.float32)}

    policy_server(act, version="2")
    policy = connect(bridge(metadata={"reset_pose": [0.0, 1.0]}))
    about = policy.get_server_metadata()
    assert about["interface"] == "policy" and about["reset_pose"] == [0.0, 1.0]
    for number in range(3):
        answer = policy.infer(OBSERVATION)
        assert_same(answer["actions"], np.ones((16, 7), np.float32))
        assert answer["policy_version"] == "policy@2"
        timing = answer["server_timing"]
        assert timing["infer_ms"] > 0 and ("prev_total_ms" in timing) == (number > 0)
    for payload in seen:
        assert_same(payload, OBSERVATION)
    policy.reset()


def test_values_of_every_kind_arrive_as_they_were_sent(connect, policy_server, bridge):
    policy_server(lambda payload: {"echo": payload})
    policy = connect(bridge())
    sent = {
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), 2, 0.5, None, True],
        "empty": np.zeros((0, 3), np.int16),
        "point": np.array(3.0),
        "nested": {"a": {"b": [np.arange(3)]}},
        "big_endian": np.arange(3, dtype=">i4"),
        "bytes": b"\x00\x01",
    }
    echo = policy.infer(sent)["echo"]
    assert_same(echo, {**sent, "big_endian": np.arange(3, dtype=np.int32)})


def test_a_bare_array_becomes_actions(connect, policy_server, bridge):
    policy_server(lambda payload: np.ones((4, 2), np.float32))
    assert_same(connect(bridge()).infer({})["actions"], np.ones((4, 2), np.float32))


def test_openpis_chunk_broker(connect, policy_server, bridge):
    pytest.importorskip("tree", reason="openpi's chunk broker needs dm-tree")
    brokers = importlib.import_module("openpi_client.action_chunk_broker")
    policy_server(lambda payload: {"actions": np.arange(12.0).reshape(3, 4)})
    chunks = brokers.ActionChunkBroker(connect(bridge()), action_horizon=3)
    for i in (0, 1, 2, 0):
        assert_same(chunks.infer({})["actions"], np.arange(12.0).reshape(3, 4)[i])


def test_what_fails_is_told_and_the_client_may_go_on(connect, policy_server, bridge):
    opened = threading.Event()

    def act(payload):
        if "slow" in payload:
            opened.wait(20)
        return {"actions": payload["state"]}

    policy_server(act)
    port = bridge(timeout_ms=300)
    policy = connect(port)
    with pytest.raises(RuntimeError, match="RemoteError: the server's handler raised KeyError"):
        policy.infer({"wrong": 1})
    with pytest.raises(RuntimeError, match="RequestTimeout: call 'policy'"):
        policy.infer({"slow": 1})
    opened.set()
    policy._ws.send(b"\xc1 this is no msgpack")
    assert "DecodeError: a message that is not openpi's msgpack" in policy._ws.recv()
    assert_same(policy.infer({"state": np.ones(2)})["actions"], np.ones(2))
    unknown = connect(bridge("nobody"))
    with pytest.raises(RuntimeError, match="unknown interface 'nobody'; this server has 'policy'"):
        unknown.infer({})


def test_declared_inputs_are_checked(connect, policy_server, bridge):
    policy_server(lambda payload: payload, inputs={"state": np.zeros(8, np.float32)})
    policy = connect(bridge())
    with pytest.raises(RuntimeError, match="state: float64 of shape"):
        policy.infer({"state": np.zeros(8)})


def test_without_a_policy_server_clients_are_told(connect, bridge):
    policy = connect(bridge(timeout_ms=100))
    with pytest.raises(RuntimeError, match="PeerAbsent: no server 'inference:5600' is running"):
        policy.infer({})


def test_several_clients_are_batched(connect, policy_server, bridge):
    """All must be in one server at once: a bridge that queues them would not get there."""
    together = threading.Barrier(3)
    port = bridge()

    def act(payload):
        together.wait(20)
        return payload

    for _ in range(3):
        policy_server(act)
    policies = [connect(port) for _ in range(3)]
    calls = [InThread(lambda p=p, i=i: p.infer({"i": i})) for i, p in enumerate(policies)]
    assert [call.result()["i"] for call in calls] == [0, 1, 2]


def test_the_key(connect, policy_server, bridge):
    policy_server(lambda payload: {"actions": np.zeros(1)})
    port = bridge(api_key="open sesame")
    assert connect(port, api_key="open sesame").infer({})["actions"] == 0
    for wrong in ("open", None):
        with pytest.raises(Exception, match="401"):
            connect(port, api_key=wrong)


def test_who_is_not_let_in(connect, policy_server, bridge):
    from websockets.sync.client import connect as websocket

    policy_server(lambda payload: payload)
    port = bridge(max_clients=1, max_message_bytes=1000)
    with pytest.raises(Exception, match="403"):  # a web page, in a browser on this machine
        websocket(f"ws://127.0.0.1:{port}", origin="https://example.com")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as health:
        assert (health.status, health.read()) == (200, b"OK\n")
    policy = connect(port)
    with pytest.raises(Exception, match="503"):
        connect(port)
    with pytest.raises(Exception, match="1009"):
        policy.infer({"image": np.zeros(2000, np.uint8)})
    policy = wait_until(lambda: _connected(connect, port), what="that the first one is gone")
    policy._ws.send("a text")
    with pytest.raises(Exception, match="1003"):
        policy._ws.recv()


def _connected(connect, port):
    try:
        return connect(port)
    except Exception as error:
        assert "503" in str(error)


# -- as a command ----------------------------------------------------------------------------------

COMMAND = "import sys; from agentlace.cli import main; sys.exit(main())"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(
    connect, policy_server, broker_url, tmp_path, number
):
    taken, opened = threading.Event(), threading.Event()

    def act(payload):
        if payload:
            taken.set()
            opened.wait(20)
        return {"actions": np.ones(3)}

    policy_server(act)
    (tmp_path / "key").write_text("sesame\n")
    (tmp_path / "about.json").write_text(json.dumps({"robot": "arm"}))
    args = ["openpi", "--interface", "policy", "--service", PORT, "--port", 0]
    args += ["--api-key-file", tmp_path / "key", "--metadata", tmp_path / "about.json"]
    with Program(COMMAND, *args, broker=broker_url) as program:
        line = program.line("openpi's clients reach 'policy'")
        assert "sesame" not in line
        policy = connect(int(line.rpartition(":")[2]), api_key="sesame")
        assert policy.get_server_metadata()["robot"] == "arm"
        assert_same(policy.infer({})["actions"], np.ones(3))
        waiting = InThread(lambda: policy.infer({"slow": True}))
        assert taken.wait(10)
        program.process.send_signal(number)
        assert program.wait() == 0, program.lines
        with pytest.raises(Exception, match=r"Closed|1001"):
            waiting.result()
        opened.set()
        assert not any("Traceback" in line or "warning" in line for line in program.lines)


def test_the_command_warns_beyond_the_loopback(broker_url, policy_server):
    policy_server(lambda payload: payload)
    args = ["openpi", "--interface", "policy", "--service", PORT, "--port", 0, "--host", "0.0.0.0"]
    with Program(COMMAND, *args, broker=broker_url) as program:
        assert "no key is asked for" in program.line("warning: whoever reaches 0.0.0.0")
        program.line("openpi's clients reach")
        assert not any("no interface" in line for line in program.lines)


def test_the_command_warns_of_what_is_not_there_yet(broker_url, policy_server):
    args = ["openpi", "--interface", "other", "--service", PORT, "--port", 0]
    with Program(COMMAND, *args, broker=broker_url) as program:
        program.line("warning: no server 'inference:5600' is running")
        program.line("openpi's clients reach")
    policy_server(lambda payload: payload)
    with Program(COMMAND, *args, broker=broker_url) as program:
        program.line("warning: the server has no interface 'other', but 'policy'")
        program.line("openpi's clients reach")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--api-key-file", "missing"], "--api-key-file 'missing'"),
        (["--metadata", "list.json"], "it must hold a JSON object"),
        (["--host", "203.0.113.1"], "could not bind|annot assign|bind on address"),
    ],
    ids=["key", "metadata", "host"],
)
def test_the_command_says_what_is_wrong(args, says, broker_url, tmp_path):
    import re

    (tmp_path / "list.json").write_text("[]")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "openpi", "--interface", "p", "--service", "1", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AGENTLACE_BROKER": broker_url},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


# -- messages --------------------------------------------------------------------------------------


def array(**changes):
    described = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return {**described, **{key.encode(): value for key, value in changes.items()}}


@pytest.mark.parametrize(
    "tree",
    [
        array(dtype="|O"),
        array(dtype="O"),
        array(dtype="<V4"),
        array(dtype="<c8"),
        array(dtype="<M8[s]"),
        array(dtype="f"),
        array(dtype=3),
        array(dtype=[["a", "<f4"]]),
        array(shape=[3]),
        array(shape=[-2]),
        array(shape=[1 << 62, 1 << 62]),
        array(shape=[1] * 33),
        array(shape=2),
        array(shape=["2"]),
        array(data="text"),
        array(data=None),
        {b"__npgeneric__": True, b"dtype": "|O", b"data": 1},
        {b"__npgeneric__": True, b"dtype": "<f4", b"data": "1"},
        {b"__npgeneric__": True, b"dtype": "|u1", b"data": -1},
        {b"__npgeneric__": True},
        {"deep": msgpack.ExtType(5, b"pickle")},
    ],
    ids=repr,
)
def test_hostile_messages_are_refused(tree):
    with pytest.raises(DecodeError):
        messages.unpack(msgpack.packb({"observation": [tree]}))


@pytest.mark.parametrize("data", [b"", b"\x91", b"\xc1", b"\x91" * 5000 + b"\x01", b"\x01\x01"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(DecodeError):
        messages.unpack(data)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": np.array([object()])}, "a"),
        ({"a": [1, np.zeros(2, complex)]}, "a/1"),
        ({"a": {3: 1}}, "a"),
        ({"when": np.datetime64("now")}, "when"),
        ({"big": 1 << 80}, ""),
    ],
    ids=["objects", "complex", "key", "time", "integer"],
)
def test_answers_that_openpi_cannot_hold_are_named(tree, path):
    with pytest.raises(EncodeError) as caught:
        messages.pack(tree)
    assert caught.value.path == path


def test_bfloat16_becomes_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    sent = {"actions": np.arange(4).astype(ml_dtypes.bfloat16), "scale": ml_dtypes.bfloat16(2)}
    found = messages.unpack(messages.pack(sent))
    assert_same(found, {"actions": np.arange(4, dtype=np.float32), "scale": np.float32(2)})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 1 << 62)
    | st.floats()
    | st.binary(max_size=16)
    | st.sampled_from(["<f4", "|O", "|b1", ">i8", "<V4", "f"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries(
            {b"__ndarray__": inner, b"data": inner, b"dtype": inner, b"shape": inner}
        )
        | st.fixed_dictionaries({b"__npgeneric__": inner, b"data": inner, b"dtype": inner})
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(VALUES.map(msgpack.packb) | st.binary(max_size=64))
def test_whatever_arrives_is_a_tree_or_refused(data):
    try:
        tree = messages.unpack(data)
    except DecodeError:
        return
    assert holds_numbers_only(tree)


def holds_numbers_only(tree):
    if isinstance(tree, (dict, list)):
        values = tree.values() if isinstance(tree, dict) else tree
        return all(map(holds_numbers_only, values))
    return not isinstance(tree, np.ndarray) or tree.dtype.kind in "biuf"
