"""What a user is told when something is missing or wrong, and that nothing waits without a word."""

import contextlib
import logging
import re
import socket
import threading
import time

import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    AgentlaceError,
    BrokerAuthFailed,
    BrokerUnreachable,
    ConfigMismatch,
    InferenceClient,
    PeerAbsent,
    RateLimited,
    RequestTimeout,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    UnknownRequest,
)
from agentlace.data import QueuedDataStore
from agentlace.gym_env import GymEnvClient
from agentlace.service import client as service
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port

from .support import InThread, holds_for, wait_until

ACTION = ActionConfig(5556, ["move"], ["x"])
TRAINER = TrainerConfig(request_types=["get-stats"])
CLIENTS = {
    "action": lambda **kwargs: ActionClient("localhost", ACTION, **kwargs),
    "trainer": lambda **kwargs: TrainerClient(
        "robot", "localhost", TRAINER, QueuedDataStore(9), **kwargs
    ),
    "gym": lambda **kwargs: GymEnvClient(**kwargs),
}


@pytest.fixture(params=CLIENTS)
def make(request):
    return CLIENTS[request.param]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(service, "CONNECT_TIMEOUT_S", 0.3)


@contextlib.contextmanager
def nothing_left_behind():
    """Fail if threads remain of a client that could not be made."""
    before = threading.active_count()
    yield
    wait_until(lambda: threading.active_count() <= before, what="no thread is left")


def raised(call):
    with nothing_left_behind(), pytest.raises(AgentlaceError) as caught:
        call()
    return caught.value


# -- no broker -------------------------------------------------------------------------------------


def test_no_broker(make, impatient):
    url = f"redis://127.0.0.1:{free_port()}"
    started = time.monotonic()
    error = raised(lambda: make(broker=url))
    assert 0.2 < time.monotonic() - started < 5
    assert isinstance(error, BrokerUnreachable) and isinstance(error, ConnectionError)
    for part in (url, "refused", "agentlace broker", "AGENTLACE_BROKER"):
        assert part in str(error)


def test_the_connect_deadline_is_not_the_timeout(make, impatient):
    """Programs set ``timeout_ms`` to 5 ms; connecting has its own deadline."""
    started = time.monotonic()
    raised(lambda: make(broker=f"redis://127.0.0.1:{free_port()}", timeout_ms=1))
    assert time.monotonic() - started > 0.2


def test_a_host_that_does_not_exist(make, impatient):
    error = raised(lambda: make(broker="redis://no-such-host.invalid"))
    assert isinstance(error, BrokerUnreachable) and "no-such-host.invalid" in str(error)


def test_something_else_listens_there(make, impatient):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        replying = threading.Thread(target=_be_a_web_server, args=(listener,), daemon=True)
        replying.start()
        error = raised(lambda: make(broker=url))
    assert isinstance(error, AgentlaceError) and url in str(error)


def _be_a_web_server(listener):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_server_without_a_broker_elsewhere_raises_at_once():
    url = f"redis://127.0.0.2:{free_port()}"  # not ours to start, as it is not "localhost"
    with ActionServer(ACTION, None, None, broker=url) as server:
        with pytest.raises(BrokerUnreachable, match="agentlace broker"):
            server.start(threaded=True)
        assert not server.is_running
    assert TrainerServer(TRAINER, broker=url).published_version == 0


# -- wrong password --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_port():
    with EmbeddedBroker(Settings(port=free_port(), password="open sesame")) as broker:
        yield broker.settings.port


@pytest.mark.parametrize("password", ["", ":wrong@", "nobody:open%20sesame@"])
def test_a_wrong_password_raises_at_once_though_told_to_wait(guarded_port, password):
    url = f"redis://{password}127.0.0.1:{guarded_port}"
    for make in (CLIENTS["action"], CLIENTS["trainer"]):
        started = time.monotonic()
        error = raised(lambda make=make: make(broker=url, wait_for_server=True))
        assert time.monotonic() - started < 2
        assert isinstance(error, BrokerAuthFailed) and isinstance(error, PermissionError)
        assert "AGENTLACE_PASSWORD" in str(error) and str(guarded_port) in str(error)
        assert "wrong" not in str(error) and "open" not in str(error)
    assert isinstance(raised(lambda: InferenceClient("x", 1, broker=url)), BrokerAuthFailed)
    with ActionServer(ACTION, None, None, broker=url) as server:
        assert isinstance(raised(lambda: server.start(threaded=True)), BrokerAuthFailed)


def test_the_right_password_from_the_environment(guarded_port, running, monkeypatch):
    monkeypatch.setenv("AGENTLACE_PASSWORD", "open sesame")
    monkeypatch.setenv("AGENTLACE_BROKER", f"redis://127.0.0.1:{guarded_port}")
    running(ActionServer(ACTION, lambda _: {"x": 1}, None)).start(threaded=True)
    assert running(ActionClient("localhost", ACTION)).obs() == {"x": 1}


# -- no server -------------------------------------------------------------------------------------


def test_no_server(make, impatient, broker_url):
    error = raised(lambda: make(broker=broker_url))
    assert isinstance(error, PeerAbsent) and isinstance(error, ConnectionError)
    assert error.last_seen is None
    for part in (error.name, "never seen", broker_url):
        assert part in str(error)


def test_a_server_that_was_there(impatient, broker_url):
    with ActionServer(ACTION, None, None, broker=broker_url) as server:
        server.start(threaded=True)
    error = raised(lambda: ActionClient("localhost", ACTION, broker=broker_url))
    assert re.search(rf"last seen {re.escape(socket.gethostname())} pid \d+", str(error))


@pytest.mark.parametrize("make", ["action", "trainer"], indirect=True)
def test_waiting_says_what_for_and_goes_on_when_it_comes(make, monkeypatch, caplog):
    """First without a broker, then without a server, then with both."""
    monkeypatch.setattr(service, "WAIT_LOG_S", 0.2)
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    caplog.set_level(logging.WARNING)
    waiting = InThread(lambda: make(broker=url, wait_for_server=True, timeout_ms=1))

    def has_said(text):
        return any("waiting" in r.message and text in r.message for r in caplog.records)

    with contextlib.ExitStack() as stack:
        wait_until(lambda: has_said("no broker"))
        broker = stack.enter_context(EmbeddedBroker(Settings(port=port)))
        wait_until(lambda: has_said("no server"))
        assert waiting.is_running
        servers = [ActionServer(ACTION, None, None, broker=url), TrainerServer(TRAINER, broker=url)]
        for server in servers:
            stack.enter_context(server).start(threaded=True)
        client = stack.enter_context(waiting.result())
        assert client.server_ip == "localhost"
        assert broker.pid


def test_a_waiting_client_still_refuses_another_config(broker_url, running):
    other = ActionConfig(5556, ["move"], ["x"], version="9")
    waiting = InThread(
        lambda: ActionClient("localhost", other, broker=broker_url, wait_for_server=True)
    )
    holds_for(lambda: waiting.is_running, 0.15)
    running(ActionServer(ACTION, None, None, broker=broker_url)).start(threaded=True)
    with pytest.raises(ConfigMismatch, match=r"'version'.*'9'.*'0.0.1'"):
        waiting.result()


def test_a_server_that_goes_away_is_named_as_the_reason(broker_url, running):
    server = running(ActionServer(ACTION, lambda _: {"x": 1}, None, broker=broker_url))
    server.start(threaded=True)
    client = running(ActionClient("localhost", ACTION, broker=broker_url, timeout_ms=200))
    assert client.obs() == {"x": 1}
    server.stop()
    assert client.obs() is None
    assert isinstance(client.last_error, PeerAbsent) and "last seen" in str(client.last_error)
    server.start(threaded=True)
    client.timeout_ms = 5000
    assert client.obs() == {"x": 1}
    assert client.last_error is None


# -- strict, last_error, rate_limit ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "environment", "strict"),
    [
        (None, None, False),
        (None, "1", True),
        (None, "0", False),
        (True, None, True),
        (False, "1", False),
    ],
)
def test_strict_is_an_argument_or_an_environment_variable(
    broker_url, running, monkeypatch, argument, environment, strict
):
    if environment:
        monkeypatch.setenv("AGENTLACE_STRICT", environment)
    server = running(TrainerServer(TRAINER, broker=broker_url))
    server.start(threaded=True)
    actor = running(ActionServer(ACTION, lambda _: {"x": 1}, None, broker=broker_url))
    actor.start(threaded=True)
    args = dict(strict=argument, broker=broker_url)
    trainer = running(TrainerClient("robot", "localhost", TRAINER, timeout_ms=50, **args))
    action = running(ActionClient("localhost", ACTION, timeout_ms=50, **args))
    inference = running(InferenceClient("localhost", 9, timeout_ms=50, **args))
    server.stop()
    actor.stop()
    calls = [
        (trainer, lambda: trainer.request("get-stats", {}), None),
        (action, action.obs, None),
        (action, lambda: action.act("move"), None),
        (inference, lambda: inference.call("echo", 1), None),
    ]
    for client, call, soft in calls:
        if strict:
            with pytest.raises((PeerAbsent, RequestTimeout)):
                call()
        else:
            assert call() is soft
        assert isinstance(client.last_error, (PeerAbsent, RequestTimeout))


def test_the_reason_of_a_none_is_logged_once(broker_url, running, caplog):
    server = running(TrainerServer(TRAINER, lambda *_: None, lambda *_: 1 / 0, broker=broker_url))
    server.start(threaded=True)
    client = running(TrainerClient("robot", "localhost", TRAINER, broker=broker_url))
    caplog.clear()
    assert client.request("get-stats", {}) is None
    told = [r for r in caplog.records if r.name == "agentlace.trainer" and "division" in r.message]
    assert [r.levelno for r in told] == [logging.WARNING]


def test_a_log_level_hides_the_log_of_its_service(broker_url, running, caplog):
    server = ActionServer(ACTION, None, lambda *_: 1 / 0, logging.CRITICAL, broker=broker_url)
    running(server).start(threaded=True)
    client = running(ActionClient("localhost", ACTION, broker=broker_url))
    caplog.clear()
    assert client.act("move") is None
    assert not [r for r in caplog.records if r.name.startswith("agentlace.action")]
    logging.getLogger("agentlace.action").setLevel(logging.WARNING)


def test_rate_limit_is_told_with_its_number(broker_url, running):
    config = TrainerConfig(request_types=["get-stats"], rate_limit=1)
    running(TrainerServer(config, broker=broker_url)).start(threaded=True)
    args = dict(broker=broker_url, strict=True)
    client = running(TrainerClient("robot", "localhost", config, **args))
    assert client.request("get-stats", {}) == {}
    with pytest.raises(RateLimited, match="rate_limit=1 "):
        client.request("get-stats", {})


def test_unknown_keys_are_refused_before_anything_is_sent(broker_url, running):
    server = running(ActionServer(ACTION, lambda _: {}, lambda *_: {}, broker=broker_url))
    server.start(threaded=True)
    client = running(ActionClient("localhost", ACTION, broker=broker_url))
    server.stop()
    for call in (lambda: client.act("send"), lambda: client.obs({"depth"})):
        started = time.monotonic()
        with pytest.raises(UnknownRequest):
            call()
        assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (BrokerUnreachable, ConnectionError),
        (PeerAbsent, ConnectionError),
        (ConfigMismatch, ValueError),
        (RequestTimeout, TimeoutError),
        (UnknownRequest, ValueError),
        (BrokerAuthFailed, PermissionError),
    ],
)
def test_programs_may_catch_builtin_exceptions(error, builtin):
    assert issubclass(error, builtin) and issubclass(error, AgentlaceError)
