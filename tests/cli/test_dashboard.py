"""``agentlace dashboard`` on the command line: what it refuses, where its passwords come from."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("starlette", reason="the dashboard needs the extra 'web'")

from typer.testing import CliRunner

from agentlace.cli.app import app
from agentlace.config import BadSetting
from agentlace.dashboard.auth import Passwords
from agentlace.dashboard.serving import Settings, is_loopback
from tests.services.support import ROOT

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("AGENTLACE")}
NOBODY = "redis://127.0.0.1:1"


def refused(*arguments, **environment):
    """Return the one line with which it refuses to start."""
    command = ["dashboard", "--port", "0", "--broker", NOBODY, *arguments]
    done = CliRunner().invoke(app, command, env=environment)
    assert done.exit_code == 1 and isinstance(done.exception, BadSetting), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "agentlace", "dashboard", "--port", "0", *arguments],
        env={**CLEAN, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AGENTLACE")]:
        monkeypatch.delenv(name)


def test_it_serves_and_ends_on_ctrl_c_also_without_a_broker():
    process = started("--broker", NOBODY)
    with process:
        line = process.stdout.readline()
        assert line.startswith(f"dashboard of {NOBODY} at http://127.0.0.1:")
        url = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"<title>agentlace</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        rest = process.stdout.read()
        assert "Traceback" not in rest


def test_not_on_loopback_without_a_password():
    text = refused("--host", "0.0.0.0")
    assert text.startswith("--host '0.0.0.0': refused without a password")
    assert "--password-file" in text


def test_an_admins_password_alone_does_not_do(tmp_path):
    (tmp_path / "admin").write_text("push")
    path = str(tmp_path / "admin")
    text = refused("--host", "0.0.0.0", "--admin-password-file", path)
    assert "refused without a password" in text


def test_the_same_password_twice_is_refused(tmp_path):
    (tmp_path / "one").write_text("same-secret\n")
    path = str(tmp_path / "one")
    text = refused("--password-file", path, AGENTLACE_DASHBOARD_ADMIN_PASSWORD="same-secret")
    assert "choose another one" in text and "same-secret" not in text


def test_a_password_file_that_is_not_there(tmp_path):
    missing = str(tmp_path / "none")
    for arguments, environment in (
        (["--password-file", missing], {}),
        (["--admin-password-file", missing], {}),
        ([], {"AGENTLACE_DASHBOARD_PASSWORD_FILE": missing}),
        ([], {"AGENTLACE_DASHBOARD_ADMIN_PASSWORD_FILE": missing}),
    ):
        assert missing in refused(*arguments, **environment)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused("--port", str(port))
    assert f"127.0.0.1:{port}" in text and "choose another" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "lab.example", ""])
def test_not_loopback(host):
    assert not is_loopback(host)
    with pytest.raises(BadSetting, match="refused without a password"):
        Settings(None, None, host)
    Settings(None, None, host, passwords=Passwords("x"))


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None\n"
        "sys.argv = ['agentlace', 'dashboard']\n"
        "from agentlace.cli import main; sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**CLEAN, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "pip install 'agentlace[web]'" in done.stderr
