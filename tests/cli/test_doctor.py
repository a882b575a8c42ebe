"""``agentlace doctor`` as people and programs see it."""

import json

import pytest
from typer.testing import CliRunner

from agentlace.cli.app import app
from agentlace.config import BadSetting
from agentlace.operating.doctor import CHECKS
from tests.operating.doctoring import setting
from tests.ports import free_port


def doctor(*arguments, status=0):
    done = CliRunner().invoke(app, ["doctor", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def test_a_line_for_each_finding(broker_url):
    text = doctor("--broker", broker_url)
    lines = text.splitlines()
    assert broker_url in lines[0] and "namespace" in lines[0]
    for check in CHECKS:
        assert any(f" {check.name} " in line or check.name in line for line in lines), check.name
    (memory,) = [line for line in lines if " memory " in line]
    assert memory.startswith("ok    memory") and "noeviction" in memory
    (warned,) = [line for line in lines if line.startswith("warn  persistence")]
    assert lines[lines.index(warned) + 1].strip().startswith("-> agentlace broker --dir DIR")
    warnings = sum(line.startswith("warn") for line in lines)
    assert lines[-1] == f"0 failed, {warnings} to be warned of"


def test_what_was_not_looked_at_is_one_line():
    text = doctor("--broker", f"redis://127.0.0.1:{free_port()}", status=1)
    skipped = [line for line in text.splitlines() if line.startswith("skip")]
    assert len(skipped) == 1 and "first mend port (TLS, protocol, password" in skipped[0]


def test_the_exit_status(broker_url):
    doctor("--broker", broker_url)
    doctor("--broker", broker_url, "--strict", status=1)  # nothing is kept on disk
    with setting(broker_url, "maxmemory-policy", "volatile-ttl"):
        text = doctor("--broker", broker_url, status=1)
    assert "fail  memory" in text and "CONFIG SET maxmemory-policy noeviction" in text


def test_json(broker_url, namespace):
    told = json.loads(doctor("--broker", broker_url, "--json"))
    assert told["ok"] is True and told["namespace"] == namespace
    assert [f["check"] for f in told["findings"]] == [check.name for check in CHECKS]
    assert set(told["findings"][0]) == {"status", "found", "remedy", "check"}
    told = json.loads(doctor("--broker", "redis://:hunter2@robts.invalid", "--json", status=1))
    assert told["ok"] is False and "hunter2" not in json.dumps(told)


def test_no_markup_is_read_in_what_was_found():
    text = doctor("--broker", "redis://[::1]:1", status=1)
    assert "[::1]:1" in text


def test_a_role_that_there_is_not(broker_url):
    with pytest.raises(BadSetting, match="one of actor, learner"):
        doctor("--broker", broker_url, "--role", "actress")
    with pytest.raises(BadSetting, match="--service 'trainer'"):
        doctor("--broker", broker_url, "--service", "trainer")
    assert "every role's job" not in doctor("--broker", broker_url, "--role", "actor")
