"""What the doctor says of users: of each role's, of those that may too little or too much."""

import contextlib
import hashlib
import re

import pytest

from agentlace.action import ActionConfig, ActionServer
from tests.services.secured import ROLES, SecuredBroker, servers

from .doctoring import Diagnosis

PROGRAM = next(iter(servers()), None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no server program here")
    with SecuredBroker(tmp_path_factory.mktemp("lab") / "broker", PROGRAM) as lab:
        yield lab


@pytest.fixture
def rules(lab):
    """Return a function that changes a user's rules for as long as the test runs."""
    with lab.channel("admin") as channel, contextlib.ExitStack() as stack:

        def change(user, *changes):
            stack.callback(channel.call, "ACL", "SETUSER", user, "reset", *rules_of(lab, user))
            channel.call("ACL", "SETUSER", user, *changes)

        yield change


def rules_of(lab, user):
    """Return the rules with which the broker was started."""
    lines = lab.directory.users.read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"user {user} "))
    selectors = re.findall(r"\([^)]*\)", line)
    return [*re.sub(r"\([^)]*\)", "", line).split()[2:], *selectors]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_its_job_and_no_more(lab, role, namespace):
    lab.refusals()
    found = Diagnosis(lab.url(role, namespace))
    expected = "may do every role's job" if role == "admin" else "may do the job of"
    assert found.one("rights").status == "ok" and expected in found.one("rights").found
    assert "fail" not in {f.status for f in found.findings}, found.findings
    assert found.one("writes").status == ("skip" if role == "observer" else "ok")
    assert found.one("version").status == "ok"
    assert found.one("memory").status == "ok"
    can_look = role in ("observer", "operator", "admin")
    assert found.one("pub/sub buffers").status == ("ok" if role == "admin" else "skip")
    assert found.one("peers").status == ("info" if can_look else "skip")
    if not can_look:
        assert "observer" in found.one("peers").remedy


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_changed(lab, role, namespace):
    """Not even keys of services that nobody has."""
    with lab.channel("admin") as channel:
        before = channel.call("DBSIZE")
        Diagnosis(lab.url(role, namespace))
        assert channel.call("DBSIZE") == before


def test_a_user_without_the_rights_of_its_role(lab, rules, namespace):
    rules("actor", "clearselectors")
    found = Diagnosis(lab.url("actor", namespace))
    found.names("rights", "fail", "send transitions", "receive networks", "users.acl")
    found.names("rights", "fail", "--namespace")


def test_a_user_that_lacks_one_right(lab, rules, namespace):
    rules("learner", "-@all", "resetkeys", "+@connection", "+multi", "+exec", "+discard", "+time")
    rules("learner", "clearselectors", "(+xread +smembers ~al:{*)", "(+hset +sadd ~al:{*)")
    rules("learner", "(+set +blpop ~al:{*:trainer:*}:server ~al:{*:trainer:*}:requests)")
    found = Diagnosis(lab.url("learner", namespace))
    text = found.names("rights", "fail", "may not do the job of a learner").found
    assert "publish networks" in text and "read transitions" not in text
    assert found.one("version").status == "skip"  # no INFO


def test_a_user_with_more_than_its_role(lab, rules, namespace):
    rules("actor", "(+set ~al:{*:trainer:*}:weights)")
    found = Diagnosis(lab.url("actor", namespace))
    found.names("rights", "warn", "more than its role: publish networks", "users.acl")


def test_the_role_that_a_user_is_to_have(lab, namespace):
    found = Diagnosis(lab.url("actor", namespace), role="learner")
    found.names("rights", "fail", "'actor' may not do the job of a learner", "publish networks")
    assert Diagnosis(lab.url("admin", namespace), role="learner").one("rights").status == "ok"


def test_a_user_of_another_name(lab, rules, namespace):
    secret = hashlib.sha256(b"sesame").hexdigest()
    with lab.channel("admin") as channel:
        channel.call("ACL", "SETUSER", "zoe", "on", f"#{secret}", "+@connection", "+time", "+multi")
        channel.call("ACL", "SETUSER", "zoe", "+discard")
        try:
            url = f"redis://zoe:sesame@127.0.0.1:{lab.settings.port}?ns={namespace}"
            found = Diagnosis(url)
            found.names("rights", "fail", "'zoe' may do no role's job", "users.acl")
        finally:
            channel.call("ACL", "DELUSER", "zoe")


def test_a_wrong_password_of_a_role(lab, namespace):
    found = Diagnosis(f"redis://actor:wr0ng@127.0.0.1:{lab.settings.port}?ns={namespace}")
    found.names(
        "password", "fail", "refuses user 'actor' with this password", "roles/USER/password"
    )
    assert "wr0ng" not in str(found.findings)
    found = Diagnosis(f"redis://127.0.0.1:{lab.settings.port}?ns={namespace}")
    found.names("password", "fail", "wants a password", "AGENTLACE_USERNAME")


def test_roles_that_reach_one_namespace_only(tmp_path):
    with SecuredBroker(tmp_path / "broker", PROGRAM, "--namespace", "lab") as broker:
        assert Diagnosis(broker.url("actor", "lab")).one("rights").status == "ok"
        found = Diagnosis(broker.url("actor", "other"))
        found.names("rights", "fail", "namespace 'other'", "AGENTLACE_NAMESPACE")


def test_who_sees_the_peers(lab, namespace):
    config = ActionConfig(5556, ["move"], ["image"])
    server = ActionServer(config, None, None, broker=lab.url("actor", namespace))
    with server:
        server.start(threaded=True)
        found = Diagnosis(lab.url("observer", namespace))
        found.names("peers", "ok", "action of action:5556")
        services = ["action:5556", "trainer:5555"]
        found = Diagnosis(lab.url("actor", namespace), services=services)
        found.names("peers", "ok", "action of action:5556")
        found.names("peers", "skip", "may not do 'SCAN'")
        found.names("peers", "fail", "nobody serves trainer:5555")
    found = Diagnosis(lab.url("actor", namespace), services=services[:1])
    found.names("peers", "fail", "action:5556 is gone: last seen 0 s ago")
