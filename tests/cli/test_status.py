"""``agentlace status``: who is there, how fast, and why it stalls."""

import io
import json
import re
import sys
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from agentlace.cli import main
from agentlace.cli.status_view import view
from agentlace.config import BrokerURL
from agentlace.data import RateLimiter, ReplayBuffer
from agentlace.errors import Closed
from agentlace.operating.problems import Problem
from agentlace.operating.report import (
    BrokerReport,
    Drop,
    NodeReport,
    Policy,
    Report,
    ServiceReport,
    StoreReport,
)
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import ConsumerState
from tests.cli.operated import Command, insert, run, run_json, trainer_and_actor
from tests.services.support import InThread, wait_until


def status():
    return run_json("status", "--json")


def test_nobody_there(broker_environment):
    result = run("status")
    assert result.exit_code == 1
    assert "no node is there in namespace" in result.stdout


def test_no_broker(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["agentlace", "status", "--broker", "redis://127.0.0.1:1"])
    assert main() == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_why_a_learner_stands_still(broker_environment):
    """It waits for a thousand transitions, and the table says how many there are."""
    buffer = ReplayBuffer(2000)
    limiter, ended = RateLimiter(min_size=1000), threading.Event()
    with trainer_and_actor(buffer) as (_, client, queue):
        insert(client, queue, 12)
        waiting = InThread(lambda: limiter.wait(buffer, 8, stopping=ended.is_set))
        wait_until(lambda: status()["services"][0]["nodes"][0]["waits"], what="what it waits for")
        result = run("status")
        ended.set()
        with pytest.raises(Closed):
            waiting.result()
    assert result.exit_code == 0
    assert "trainer waits for 12 of 1,000 transitions inserted (for " in result.stdout
    assert "; 1 actor" in result.stdout
    assert "actor robot-1" in result.stdout and "store env of trainer:5555" in result.stdout


def test_what_json_says(broker_environment, namespace):
    """Names that others rely on: they are only added."""
    with trainer_and_actor() as (_, client, queue):
        insert(client, queue, 5)
        told = status()
    assert told.keys() == {
        *("at_ms", "namespace", "broker", "problems", "services", "stores", "drops")
    }
    assert told["namespace"] == namespace and told["broker"]["policy"] == "noeviction"
    (service,) = told["services"]
    assert service.keys() == {"name", "queued", "samples_per_insert", "nodes"}
    trainer, actor = service["nodes"]
    assert (trainer["does"], actor["does"], actor["name"]) == ("trainer", "actor", "robot-1")
    assert actor.keys() == {
        *("does", "name", "is_server", "host", "pid", "version", "state", "beat_s", "progress_s"),
        *("rates", "policy", "lag", "waits", "reports"),
    }
    (store,) = told["stores"]
    assert (store["name"], store["streams"], store["when_full"]) == ("env", 1, "block")


def test_a_consumer_that_is_gone_comes_first(broker_environment, broker_url, namespace):
    keys = ServiceKeys(namespace, "trainer", 5555).store("env")
    with trainer_and_actor() as (_, client, queue):
        channel = Broker(BrokerURL.parse(broker_url)).channel()
        channel.call("SADD", keys.consumers, "recorder:pick")
        channel.close()
        insert(client, queue, 5)
        lines = run("status").stdout.splitlines()
    assert lines[2].startswith("! store env: consumer recorder:pick, 5 transitions behind")
    assert lines[3].strip().endswith("agentlace consumers forget recorder:pick")


def test_watching_until_ctrl_c(broker_environment):
    with trainer_and_actor(), Command("status", "--watch", 0.2, "--json") as watching:
        first, second = (json.loads(watching.line('"services"')) for _ in range(2))
        assert second["at_ms"] > first["at_ms"]
        code, _, err = watching.interrupt()
    assert code == 0 and "Traceback" not in err


# -- what it looks like ----------------------------------------------------------------------------


def node(name, **more):
    plain = dict(
        does="actor",
        name=name,
        is_server=False,
        host="lab-machine-3.example.org",
        pid=123456,
        version="0.1.0",
        state="alive",
        beat_s=0.3,
        progress_s=0.3,
        rates={"transitions_sent": 20.0},
        policy=Policy(1041, 3.0, 0),
        lag=0,
        waits=[],
        reports={},
    )
    return NodeReport(**{**plain, **more})


def crowd():
    """Return a report of 64 actors, of which two have something to tell."""
    actors = [node(f"robot-{number:02}") for number in range(64)]
    waits = "room in store 'env': 99 of 100 bytes are used; consumer 'x' is 5 behind (for 3 s)"
    actors[40] = node("robot-40", state="late", beat_s=4.0)
    actors[50] = node("robot-50", waits=[waits])
    actors[51] = node("robot-51", waits=[waits.replace("99", "98")])
    trainer = node("trainer:5555", does="trainer", is_server=True, rates={"networks": 1.0})
    broker = BrokerReport("redis://gpu:6379", "valkey 9", 60.0, 1 << 20, 1 << 30, "", 9, 1e-4, {})
    late = Problem("late", "actor robot-40", "no heartbeat for 4 s: it is stopped")
    drop = Drop("trainer:5555", "robot-07", "transitions_lost", "overwritten", "env", 12, 1.5)
    service = ServiceReport("trainer:5555", 3, 4.0, [trainer, *actors])
    return Report(0.0, "default", broker, [late], [service], [], [drop])


def shown(report, width, show_all=False):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(view(report, show_all, width))
    return console.file.getvalue()


def test_a_crowd_in_a_narrow_terminal():
    text = shown(crowd(), 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 30
    assert any(line.endswith(" lag") for line in lines)
    assert lines[2].startswith("! actor robot-40: no heartbeat for 4 s")
    assert "late 4 s" in text and "actor robot-50" in text
    assert "and 54 more, none idle, 1,080 /s out, policies 1041 to 1041" in text
    assert "so does 1 more" in " ".join(text.split())
    assert "3 requests waiting" in text and "4 samples per transition inserted" in text


def test_all_of_a_crowd():
    text = shown(crowd(), 120, show_all=True)
    assert all(f"actor robot-{number:02} " in text for number in range(64))
    assert "lab-machine-3.example" in text


def example():
    """Return the report that the documentation shows."""
    gib = 1 << 30
    trainer = node(
        "trainer:5555",
        does="trainer",
        is_server=True,
        host="gpu",
        pid=4321,
        rates={"transitions_applied": 0.0, "networks": 0.0},
        progress_s=21.0,
        policy=Policy(41, None, 0),
        waits=["4,212 of 10,000 transitions inserted (for 21 s); 2 actors"],
        reports={"critic_loss": 0.0321},
    )
    room = (
        "room in store 'env': 512 MiB of 512 MiB are used; consumer 'recorder:pick' "
        "(host lab, pid 77, last seen 63 s ago) is 5210 transitions behind (for 21 s)"
    )
    actors = [
        node(f"robot-{number}", host="lab", pid=100 + number, lag=12, waits=[room], **more)
        for number, more in ((1, {}), (2, {"policy": Policy(39, 190.0, 2)}))
    ]
    actors = [replace(a, rates={"transitions_sent": 0.0}, progress_s=21.0) for a in actors]
    actors[0] = replace(actors[0], policy=Policy(41, 22.0, 0))
    recorder = ConsumerState("trainer:5555", "env", "recorder:pick", "lab", 77, 5210, 64.0, 63)
    learner = ConsumerState(
        "trainer:5555", "env", f"trainer:{'c0ffee' * 5}", "gpu", 4321, 0, 21.0, 1
    )
    store = StoreReport("trainer:5555", "env", gib - 4096, gib, "block", 2, [recorder, learner])
    keys = {"trainer stream:*": gib, "trainer weights:*": 48 << 20, "action obs": 12_544}
    broker = BrokerReport(
        *("redis://gpu:6379", "valkey 9.0.1", 7_200.0, 3 * gib // 2, 4 * gib, "noeviction"),
        *(14, 0.0004, keys),
    )
    found = [
        Problem(
            "store full",
            "store env",
            "1.0 GiB of 1.0 GiB are used, then update() waits; kept for consumer "
            "recorder:pick, 5,210 transitions behind (lab pid 77, not alive, no progress for 64 s)",
            "start it, or, if it is gone for good: agentlace consumers forget recorder:pick",
        ),
        Problem(
            "old network",
            "actor robot-2",
            "acts with network 39 (190 s old), the newest is 41",
        ),
    ]
    drop = Drop(
        *("trainer:5555", "trainer:5555", "networks_superseded", "networks superseded", ""),
        *(10, 0.0),
    )
    service = ServiceReport("trainer:5555", 0, None, [trainer, *actors])
    return Report(0.0, "default", broker, found, [service], [store], [drop])


def test_the_example_in_the_documentation(request):
    """Printed anew: ``pytest tests/cli/test_status.py -k documentation`` shows the difference."""
    page = (request.config.rootpath / "docs" / "operating.md").read_text()
    lines = [line.rstrip() for line in shown(example(), 80).splitlines()]
    clock = re.compile(r"\d\d:\d\d:\d\d")
    assert clock.sub("12:03:11", "\n".join(lines)) in page
