"""Configs: their defaults, what both ends compare, and where the broker is looked for."""

import copy
import dataclasses
import os
import traceback

import pytest

from agentlace import (
    ActionClient,
    ActionConfig,
    ActionServer,
    AgentlaceError,
    BrokerURL,
    ConfigMismatch,
    InferenceConfig,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
)
from agentlace.config import check_same, copy_of, described

ACTION = ActionConfig(5556, ["a", "b"], ["x"], broadcast_port=5557)
TRAINER = TrainerConfig(request_types=["send-stats"], rate_limit=None)


def test_the_defaults_are_those_of_existing_programs():
    assert ActionConfig(1, [], []) == ActionConfig(1, [], [], None, "0.0.1")
    assert TrainerConfig() == TrainerConfig(5555, 5556, [], None, "0.0.2", None)
    assert InferenceConfig(1).version == "0.0.1"
    names = [field.name for field in dataclasses.fields(TrainerConfig)]
    assert names[:2] == ["port_number", "broadcast_port"]
    assert TrainerConfig().request_types is not TrainerConfig().request_types


@pytest.mark.parametrize("config", [ACTION, TRAINER, InferenceConfig(3)])
def test_a_copy_is_equal_and_independent(config):
    copied = copy_of(config)
    assert copied == config and copied is not config
    assert copied == copy.deepcopy(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert not isinstance(value, list) or getattr(copied, field.name) is not value


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_keys_are_compared_as_sets(kind):
    check_same(described(ACTION), described(dataclasses.replace(ACTION, action_keys=kind("ba"))))


def test_the_pipeline_port_is_not_compared():
    other = dataclasses.replace(TRAINER, experimental_pipeline_port=5547)
    check_same(described(TRAINER), described(other))


ACTION_CHANGES = [
    ("action_keys", ["a"]),
    ("observation_keys", ["x", "y"]),
    ("broadcast_port", None),
    ("version", "0.0.2"),
]
TRAINER_CHANGES = [
    ("broadcast_port", 7000),
    ("request_types", ["send-stats", "get-stats"]),
    ("rate_limit", 10),
    ("version", "0.0.1"),
]


@pytest.mark.parametrize(("field", "value"), ACTION_CHANGES)
def test_an_action_mismatch_names_the_field_and_both_values(running, broker_url, field, value):
    running(ActionServer(ACTION, None, None, broker=broker_url)).start(threaded=True)
    mine = dataclasses.replace(ACTION, **{field: value})
    with pytest.raises(ConfigMismatch) as caught:
        ActionClient("localhost", mine, broker=broker_url, wait_for_server=True)
    _check(caught.value, field, value, getattr(ACTION, field))


@pytest.mark.parametrize(("field", "value"), TRAINER_CHANGES)
def test_a_trainer_mismatch_names_the_field_and_both_values(running, broker_url, field, value):
    running(TrainerServer(TRAINER, broker=broker_url)).start(threaded=True)
    mine = dataclasses.replace(TRAINER, **{field: value})
    with pytest.raises(ConfigMismatch) as caught:
        TrainerClient("robot", "localhost", mine, broker=broker_url, wait_for_server=True)
    _check(caught.value, field, value, getattr(TRAINER, field))


def _check(error, field, mine, theirs):
    def plain(value):
        return sorted(value) if isinstance(value, list) else value

    assert (error.field, error.mine, error.theirs) == (field, plain(mine), plain(theirs))
    for part in (field, repr(plain(mine)), repr(plain(theirs))):
        assert part in str(error)


# -- where the broker is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "environment", "host", "found"),
    [
        ("redis://a:1", "redis://b:2", "c", "redis://a:1"),
        (None, "redis://b:2", "c", "redis://b:2"),
        (None, None, "c", "redis://c:6379"),
        (None, None, "::1", "redis://[::1]:6379"),
        ("a:1", None, "c", "redis://a:1"),
        (BrokerURL.parse("rediss://a:1/2?ns=lab"), "redis://b:2", "c", "rediss://a:1/2?ns=lab"),
    ],
)
def test_the_argument_comes_first_then_the_environment_then_the_host(
    monkeypatch, argument, environment, host, found
):
    if environment:
        monkeypatch.setenv("AGENTLACE_BROKER", environment)
    assert str(BrokerURL.resolve(argument, host)) == found


def test_existing_programs_find_the_broker_through_the_environment(running, broker_environment):
    running(ActionServer(ACTION, lambda keys: {"x": 1}, None)).start(threaded=True)
    assert running(ActionClient("203.0.113.7", ACTION)).obs() == {"x": 1}


def test_namespaces_do_not_meet(running, broker_url):
    for room in ("one", "two"):
        url = broker_url + room
        server = running(ActionServer(ACTION, lambda _, r=room: {"x": r}, None, broker=url))
        server.start(threaded=True)
    for room in ("one", "two"):
        client = running(ActionClient("localhost", ACTION, broker=broker_url + room))
        assert client.obs() == {"x": room}


def test_the_namespace_may_come_from_the_environment(running, broker_url, monkeypatch):
    address, namespace = broker_url.split("?ns=")
    running(ActionServer(ACTION, lambda _: {"x": 1}, None, broker=broker_url)).start(threaded=True)
    monkeypatch.setenv("AGENTLACE_NAMESPACE", namespace)
    assert running(ActionClient("localhost", ACTION, broker=address)).obs() == {"x": 1}


def test_an_address_never_shows_its_password(monkeypatch, tmp_path):
    url = BrokerURL.parse("redis://robot:s%40cret@host:7000/1?ns=lab")
    assert (url.username, url.password, url.db, url.namespace) == ("robot", "s@cret", 1, "lab")
    assert "cret" not in str(url) + repr(url)
    (tmp_path / "password").write_text("from a file\n")
    monkeypatch.setenv("AGENTLACE_PASSWORD_FILE", str(tmp_path / "password"))
    assert BrokerURL.parse("redis://host").password == "from a file"
    monkeypatch.setenv("AGENTLACE_PASSWORD", "direct")
    assert BrokerURL.parse("redis://host").password == "direct"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("a directory", "Is a directory"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"s\xffcret", "not UTF-8"),
    ],
)
def test_a_bad_password_file_is_named(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "password"
    if content == "a directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("AGENTLACE_PASSWORD_FILE", str(path))
    for read in (lambda: BrokerURL.resolve(None), lambda: TrainerServer(TRAINER)):
        with pytest.raises(AgentlaceError, match=reason) as caught:
            read()
        assert isinstance(caught.value, ValueError)
        for part in ("AGENTLACE_PASSWORD_FILE", str(path), "write the password into"):
            assert part in str(caught.value)
        assert "cret" not in "".join(traceback.format_exception(caught.value))
    assert BrokerURL.parse("redis://:given@host").password == "given"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_an_unreadable_password_file_is_named(monkeypatch, tmp_path):
    path = tmp_path / "password"
    path.write_text("secret")
    path.chmod(0)
    monkeypatch.setenv("AGENTLACE_PASSWORD_FILE", str(path))
    with pytest.raises(ValueError, match=f"AGENTLACE_PASSWORD_FILE '{path}': Permission denied"):
        BrokerURL.parse("redis://host")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://host", "http"),
        ("redis://:hidden@host:port", "port"),
        ("redis://host:99999", "port"),
        ("redis://host/zero", "number"),
        ("redis://host?ns={a}", "namespace"),
    ],
)
def test_a_bad_address_is_refused_with_a_reason(address, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        BrokerURL.parse(address)
    assert "hidden" not in str(caught.value)
