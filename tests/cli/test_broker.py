"""``agentlace broker`` as a real process: whatever ends it, nothing is left running."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed
from agentlace.transport.connection import Broker
from tests.ports import free_port

DEADLINE_S = 30.0


def command(*arguments):
    return [sys.executable, "-m", "agentlace", "broker", *map(str, arguments)]


@contextlib.contextmanager
def running(*arguments, port=None):
    """Run the command until it says that the broker is there."""
    port = port or free_port()
    process = subprocess.Popen(
        command("--port", port, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.port = port
    with process.stdout:
        try:
            process.welcome = process.stdout.readline()
            assert f"127.0.0.1:{port}" in process.welcome, process.stdout.read()
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
            wait_until(lambda: not servers_on(port))


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def servers_on(port):
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if "-server" in line and f":{port}" in line:
            found.append(process)
    return found


@contextlib.contextmanager
def connected(port, password=None, host="127.0.0.1"):
    url = BrokerURL("redis", host, port, password=password)
    with contextlib.closing(Broker(url).channel()) as channel:
        yield channel


def refused(*arguments):
    """Return what the command says when it refuses to run."""
    found = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S)
    said = found.stderr + found.stdout
    assert found.returncode not in (0, None)
    assert "Traceback" not in said
    return found.returncode, said


def test_it_serves_and_says_where():
    with running() as process:
        assert f"broker at redis://127.0.0.1:{process.port}" in process.welcome
        assert "in memory only" in process.welcome
        with connected(process.port) as channel:
            assert channel.call("PING") == b"PONG"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number, tmp_path):
    with running("--dir", tmp_path) as process, connected(process.port) as channel:
        channel.call("SET", "key", "value")
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert time.monotonic() - began < 10  # about 0.2 s, on a machine that is not overloaded
        assert not servers_on(process.port)
        assert process.stdout.read() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_killing_it_leaves_no_server(tmp_path):
    with running("--dir", tmp_path) as process:
        (server,) = servers_on(process.port)
        process.kill()
        process.wait()
        server.wait(DEADLINE_S)


def test_it_ends_with_its_server():
    with running() as process:
        (server,) = servers_on(process.port)
        server.kill()
        assert process.wait(DEADLINE_S) == 1
        said = process.stdout.read()
        log = Path(re.search(r"its log is (.+)", said)[1])
        assert log.name == f"{process.port}.log" and log.read_text()
        assert "start one with" not in said
        assert re.search(r"^agentlace: .*ended with status -9", said)
        assert said.count("\n") == 1


def test_a_signal_ends_it_while_it_loads(tmp_path):
    with running("--dir", tmp_path) as process, connected(process.port) as channel:
        loop = "for i = 1, 400000 do redis.call('SET', i, i) end"
        channel.call("EVAL", loop, 0, timeout_s=60)
    process = subprocess.Popen(command("--port", process.port, "--dir", tmp_path))
    try:
        wait_until(lambda: [s for s in servers_on_any(tmp_path)] or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        wait_until(lambda: not servers_on_any(tmp_path))
    finally:
        process.kill()
        process.wait()


def servers_on_any(directory):
    """Return the servers that run in a directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "-server" in " ".join(process.info["cmdline"] or []):
                if process.cwd() == str(directory):
                    found.append(process)
    return found


def test_a_directory_keeps_the_data(tmp_path):
    for before in (None, b"1", b"2"):
        with running("--dir", tmp_path / "new" / "data") as process:
            assert str(tmp_path) in process.welcome
            with connected(process.port) as channel:
                found = channel.call("GET", "n")
                assert (None if found is None else bytes(found)) == before
                channel.call("INCR", "n")


def fill(port, key):
    with connected(port) as channel:
        channel.call("SET", key, "value")


def keys_of(port):
    with connected(port) as channel:
        return {bytes(key) for key in channel.call("KEYS", "*")}


def test_two_brokers_do_not_share_a_directory(tmp_path):
    data, link = tmp_path / "data", tmp_path / "link"
    data.mkdir()
    link.symlink_to(data)
    with running("--dir", data) as process:
        fill(process.port, "first")
        (server,) = servers_on(process.port)
        for directory in (data, link):
            port = free_port()
            code, said = refused("--port", port, "--dir", directory)
            assert (code, said.count("\n")) == (1, 1)
            assert said.startswith(f"agentlace: --dir '{directory}': another broker keeps its data")
            assert f"stop that one (process {server.pid}, port {process.port})" in said
            assert not servers_on(port)
        fill(process.port, "second")
    with running("--dir", data) as process:
        assert keys_of(process.port) == {b"first", b"second"}


def test_a_directory_is_free_right_after_a_stop(tmp_path):
    written = set()
    for n in range(4):
        with running("--dir", tmp_path) as process:
            assert keys_of(process.port) == written
            fill(process.port, f"key {n}")
            written.add(f"key {n}".encode())


@pytest.mark.parametrize("killed", ["the command", "the server", "both"])
def test_a_directory_is_free_after_a_kill(tmp_path, killed):
    with running("--dir", tmp_path) as process:
        (server,) = servers_on(process.port)
        fill(process.port, "key")
        if killed != "the server":
            process.kill()
        if killed != "the command":
            server.kill()
        process.wait(DEADLINE_S)
        server.wait(DEADLINE_S)
        with running("--dir", tmp_path) as successor:
            assert keys_of(successor.port) == {b"key"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_the_lock_is_the_servers_not_its_starters(tmp_path):
    """The server holds it though its starter is gone: this one is stopped and cannot end yet."""
    with running("--dir", tmp_path) as process:
        (server,) = servers_on(process.port)
        server.suspend()
        process.kill()
        process.wait()
        code, said = refused("--port", free_port(), "--dir", tmp_path)
        assert code == 1 and "another broker keeps its data there" in said
        server.resume()
        server.wait(DEADLINE_S)
        with running("--dir", tmp_path) as successor:
            assert keys_of(successor.port) == set()


@pytest.mark.parametrize("name", ["/proc/nowhere", "/dev/null/data", "a-file"])
def test_a_directory_that_cannot_be_written_to(tmp_path, name):
    (tmp_path / "a-file").touch()
    directory = tmp_path / name
    code, said = refused("--port", free_port(), "--dir", directory)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"agentlace: --dir '{directory}': ")
    assert said.endswith(": choose a directory that this user may write to\n")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else(tmp_path):
    tmp_path.chmod(0o500)
    code, said = refused("--port", free_port(), "--dir", tmp_path)
    assert code == 1 and "Permission denied: choose a directory" in said


def test_a_password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("long enough\n")
    with running("--password-file", path) as process:
        assert "long enough" not in process.welcome
        with connected(process.port, "long enough") as channel:
            assert channel.call("PING") == b"PONG"
        for password in (None, "wrong"):
            with connected(process.port, password) as channel:
                with pytest.raises(BrokerAuthFailed):
                    channel.call("PING")
        for server in (*servers_on(process.port), psutil.Process(process.pid)):
            assert "long enough" not in " ".join(server.cmdline())


def test_other_machines_need_the_password(tmp_path):
    path = tmp_path / "password"
    path.write_text("secret")
    with running("--host", "0.0.0.0", "--password-file", path) as process:
        told = [process.stdout.readline() for _ in range(3)]
        assert f":{process.port}" in told[1]
        assert "AGENTLACE_PASSWORD" in told[2]
        with connected(process.port, "secret") as channel:
            assert channel.call("PING") == b"PONG"


def test_maxmemory_and_appendfsync(tmp_path):
    options = ("--maxmemory", "16mb", "--dir", tmp_path, "--appendfsync", "always")
    with running(*options) as process, connected(process.port) as channel:
        assert channel.call("CONFIG", "GET", "maxmemory")[1] == b"16777216"
        assert channel.call("CONFIG", "GET", "appendfsync")[1] == b"always"
        with pytest.raises(AgentlaceError, match="no room"):
            for n in range(30):
                channel.call("SET", n, bytes(1 << 20))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "*"])
def test_without_a_password_only_loopback(host):
    code, said = refused("--host", host, "--port", free_port())
    assert code == 1
    assert said.startswith(f"agentlace: --host {host!r}: refused without a password")
    assert said.count("\n") == 1


def test_an_empty_password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("\n")
    for host in ("0.0.0.0", "127.0.0.1"):
        code, said = refused("--host", host, "--port", free_port(), "--password-file", path)
        assert (code, said.count("\n")) == (1, 1)
        assert f"--password-file '{path}': it is empty" in said


def test_a_password_file_that_is_not_text(tmp_path):
    path = tmp_path / "password"
    path.write_bytes(b"s\xffcret")
    code, said = refused("--port", free_port(), "--password-file", path)
    assert (code, said.count("\n")) == (1, 1)
    assert f"--password-file '{path}'" in said and "cret" not in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--maxmemory", "lots"), "--maxmemory 'lots': it must be a whole number"),
        (("--maxmemory", "1.5gb"), "--maxmemory '1.5gb': it must be a whole number"),
        (("--maxmemory", "4 gb"), "--maxmemory '4 gb': it must be a whole number"),
        (("--maxmemory", "1tb"), "--maxmemory '1tb': it must be a whole number"),
        (("--maxmemory", "-1gb"), "--maxmemory '-1gb': it must be a whole number"),
        (("--maxmemory", "0"), "--maxmemory '0': less than 16mb"),
        (("--maxmemory", "16m"), "--maxmemory '16m': less than 16mb"),
        (("--maxmemory", "9" * 30), "no machine has so much"),
        (("--appendfsync", "never-ever"), "'never-ever': it must be one of everysec, always, no"),
        (("--dir", ""), "--dir '': it is empty"),
        (("--host", "127.0.0.1\nrequirepass x"), "without a password"),
    ],
)
def test_bad_values(arguments, reason):
    code, said = refused("--port", free_port(), *arguments)
    assert code == 1
    assert reason in said
    assert said.startswith("agentlace: ")
    assert said.count("\n") == 1
    assert "start one with" not in said


@pytest.mark.parametrize(
    ("maxmemory", "size"),
    [("16777216", 1 << 24), ("16777216b", 1 << 24), ("20M", 20_000_000), ("1Gb", 1 << 30)],
)
def test_every_unit_is_the_servers(maxmemory, size):
    with running("--maxmemory", maxmemory) as process, connected(process.port) as channel:
        assert int(channel.call("CONFIG", "GET", "maxmemory")[1]) == size


def test_appendfsync_no(tmp_path):
    with running("--dir", tmp_path, "--appendfsync", "no") as process:
        with connected(process.port) as channel:
            assert channel.call("CONFIG", "GET", "appendfsync")[1] == b"no"


def test_an_address_that_the_machine_does_not_have(tmp_path):
    path = tmp_path / "password"
    path.write_text("secret")
    code, said = refused("--host", "192.0.2.1", "--port", free_port(), "--password-file", path)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("agentlace: --host '192.0.2.1': ")
    assert "choose an address" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "0"),
        ("--port", "65536"),
        ("--port", "x"),
        ("--password-file", "/nowhere"),
        ("-z",),
    ],
)
def test_bad_options(arguments):
    code, said = refused(*arguments)
    assert code == 2
    assert arguments[0] in said or "port" in said


def test_a_taken_port():
    with running() as process:
        code, said = refused("--port", process.port)
        assert code == 1
        assert f"agentlace: --port {process.port}: Address already in use: stop" in said
        assert said.count("\n") == 1
        with connected(process.port) as channel:
            assert channel.call("PING") == b"PONG"


def test_help_names_every_option():
    found = subprocess.run(
        [*command("--help")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert found.returncode == 0
    for option in ("--host", "--port", "--dir", "--password-file", "--maxmemory", "--appendfsync"):
        assert option in found.stdout
