"""A master and a replica that three sentinels watch: the master dies; nothing is lost."""

import contextlib
import threading

import pytest

from agentlace.config import BrokerURL
from agentlace.errors import BrokerAuthFailed, BrokerUnreachable
from agentlace.transport.connection import Broker
from tests.ha.forgotten import check_resend
from tests.ha.workload import Workload
from tests.server_groups import Sentinels, wait_until


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory):
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as sentinels:
        yield sentinels


@pytest.fixture
def whole(sentinels):
    """The group, whole again after the test."""
    yield sentinels
    sentinels.mend()


@pytest.fixture
def url(whole, namespace):
    return f"{whole.url}?ns={namespace}"


def test_the_master_is_killed(whole, url):
    with Workload(url) as work:
        work.goes_on()
        dead = whole.master
        dead.kill()
        work.goes_on()
        assert whole.master is not dead
        work.refuses_a_second_trainer()
        work.finish()


def test_what_the_replica_had_not_got_is_sent_again(whole, url):
    check_resend(url, whole.master, whole.replica)


def test_the_first_sentinel_is_dead(whole, url):
    whole.sentinels[0].kill()
    with contextlib.closing(Broker(BrokerURL.parse(url)).channel()) as channel:
        assert channel.call("PING") == b"PONG"
        assert channel.server == ("127.0.0.1", whole.master.port)


@pytest.mark.parametrize(("password", "fits"), [("geheim", True), ("falsch", False)])
def test_sentinels_with_a_password(whole, password, fits, monkeypatch):
    for sentinel in whole.sentinels:
        sentinel.ask("ACL", "SETUSER", "watch", "on", ">geheim", "+@all")
    monkeypatch.setenv("AGENTLACE_SENTINEL_PASSWORD", password)
    broker = Broker(BrokerURL.parse(f"{whole.url}?sentinel_username=watch"))
    with contextlib.closing(broker.channel()) as channel:
        if fits:
            assert channel.call("PING") == b"PONG"
            return
        with pytest.raises(BrokerAuthFailed):
            channel.call("PING")


def test_a_name_that_no_sentinel_knows(whole):
    broker = Broker(BrokerURL.parse(whole.url.replace("/agentlace", "/nobody")))
    with contextlib.closing(broker.channel()) as channel:
        with pytest.raises(BrokerUnreachable, match="knows no 'nobody'"):
            channel.call("PING")


def test_what_answers_is_no_sentinel(whole):
    broker = Broker(BrokerURL.parse(f"redis+sentinel://127.0.0.1:{whole.master.port}/agentlace"))
    with contextlib.closing(broker.channel()) as channel:
        with pytest.raises(BrokerUnreachable, match="is no sentinel"):
            channel.call("PING")


def test_a_blocked_server_is_woken_at_the_right_address(whole, url):
    """CLIENT UNBLOCK must reach the very server where the channel waits."""
    broker = Broker(BrokerURL.parse(url))
    with contextlib.closing(broker.channel()) as channel:
        channel.connect()
        replies = []
        thread = threading.Thread(
            target=lambda: replies.append(channel.call("BLPOP", "never", "30", timeout_s=40))
        )
        thread.start()
        wait_until(lambda: channel.unblock() or not thread.is_alive(), 10)
        thread.join()
        assert replies == [None] and channel.connects == 1
