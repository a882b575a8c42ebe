"""Channels of a cluster: each command is executed where its key is, and only there."""

import contextlib
import threading

import pytest
from transport_support import channel_to, wait_until

from agentlace.config import BrokerURL
from agentlace.errors import BrokerAuthFailed, BrokerUnreachable
from agentlace.transport.connection import Broker, Passing
from agentlace.transport.discovery import hash_tag, redirection, slot_of
from agentlace.transport.pubsub import PLAIN, SHARDED
from agentlace.transport.resp import ErrorReply
from agentlace.transport.subscription import Subscription
from tests.server_groups import Node


@pytest.fixture
def cluster(session_cluster):
    return session_cluster


@pytest.fixture
def broker(cluster):
    return Broker(BrokerURL.parse(cluster.url))


@pytest.fixture
def tag(namespace):
    return f"al:{{{namespace}:trainer:1}}"


@pytest.fixture
def channel(broker, tag):
    with contextlib.closing(broker.channel(key=tag)) as channel:
        yield channel


@pytest.fixture
def move(cluster, tag):
    """Return a context manager while which the tag's slot is being moved."""

    @contextlib.contextmanager
    def move():
        slot = slot_of(tag)
        source = cluster.owner(slot)
        target = cluster.other_than(source)
        source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        yield source, target
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            migrate(source, target, *keys)
        for node in (target, source, *cluster.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    return move


def migrate(source, target, *keys):
    for key in keys:
        assert source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000) in ("OK", "NOKEY")


def here(node, *keys):
    """Return which keys a node holds itself, whoever owns their slot."""
    slot = slot_of(keys[0])
    held = node.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    return [key for key in keys if key in held]


@pytest.mark.parametrize("key", ["plain", "al:{x:y}:z", "{}z", "a{b", "{a}{b}", "al:{ü}"])
def test_slots_are_counted_as_the_server_does(cluster, key):
    assert slot_of(key) == cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key)


def test_what_shares_a_slot():
    assert hash_tag("al:{ns:trainer:1}:server") == "ns:trainer:1"
    assert hash_tag("al:{ns:trainer:1:env}:actors") == "ns:trainer:1:env"
    assert hash_tag("no tag") == "no tag"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381)),
        ("ASK 3999 [::1]:6381", ("::1", 6381)),
        ("ASK 3999 fe80::1:6381", ("fe80::1", 6381)),
        ("MOVED 3999 :6381", ("asked", 6381)),
        ("MOVED 3999 ?:6381", ("asked", 6381)),
        ("MOVED 3999", None),
        ("MOVED 3999 host:port", None),
        ("CLUSTERDOWN Hash slot not served", None),
    ],
)
def test_where_a_refusal_points(text, expected):
    assert redirection(ErrorReply(text), ("asked", 1)) == expected


def test_a_channel_goes_to_the_node_that_has_its_keys(broker, cluster, channel, tag):
    assert channel.call("SET", f"{tag}:a", 1) == b"OK"
    assert channel.server[1] == cluster.owner(slot_of(tag)).port
    assert channel.at(f"{tag}:b") is channel
    seen = set()
    for number in range(20):
        other = f"al:{{{tag[4:-1]}:{number}}}:a"
        sibling = channel.at(other)
        assert sibling is channel.at(other)
        assert sibling.call("SET", other, number) == b"OK"
        seen.add(sibling.server)
        assert sibling.server[1] == cluster.owner(slot_of(other)).port
    assert len(seen) == 3
    channel.close()
    assert not sibling.is_connected


def test_a_channel_without_a_key_reaches_every_key(broker, tag):
    with contextlib.closing(broker.channel()) as channel:
        for number in range(20):
            key = f"al:{{{tag[4:-1]}:{number}}}:a"
            channel.call("SET", key, number)
            channel.call("WATCH", key)
            replies = channel.exchange([("MULTI",), ("INCR", key), ("EXEC",)])
            assert channel.checked(replies)[-1] == [number + 1]
        assert channel.connects == 1


def test_keys_that_have_left_are_followed(channel, tag, move):
    old, new = f"{tag}:old", f"{tag}:new"
    channel.call("SET", old, 1)
    with move() as (source, target):
        assert channel.exchange([("INCR", old), ("RPUSH", new, "x"), ("INCR", old)]) == [2, 1, 3]
        assert (here(source, old, new), here(target, old, new)) == ([old], [new])
        migrate(source, target, old)
        assert channel.call("INCR", old) == 4
        assert channel.call("BLPOP", new, "1") == [new.encode(), b"x"]
        assert channel.connects == 1
    assert channel.call("INCR", old) == 5
    assert channel.call("INCR", old) == 6
    assert channel.server[1] == target.port
    assert channel.connects == 2  # whoever counts connections looks again at what is there


def test_a_transaction_goes_as_a_whole(channel, tag, move):
    a, b = f"{tag}:a", f"{tag}:b"
    channel.exchange([("SET", a, 1), ("SET", b, 1)])
    both = [("MULTI",), ("INCR", a), ("INCR", b), ("EXEC",)]
    with move() as (source, target):
        assert channel.checked(channel.exchange(both))[-1] == [2, 2]
        migrate(source, target, a)
        with pytest.raises(Passing):
            channel.checked(channel.exchange(both))
        assert (here(source, a, b), here(target, a, b)) == ([b], [a])
        migrate(source, target, b)
        assert channel.checked(channel.exchange(both))[-1] == [3, 3]
    assert channel.checked(channel.exchange(both))[-1] == [4, 4]


def executed(channel, commands):
    """Whether a transaction was executed."""
    try:
        return channel.checked(channel.exchange(commands))[-1] is not None
    except Passing:
        return False


def test_a_watch_holds_while_its_key_leaves(channel, tag, move):
    key = f"{tag}:a"
    change = [("MULTI",), ("SET", key, "mine"), ("EXEC",)]
    channel.call("SET", key, 1)
    with move() as (source, target):
        channel.call("WATCH", key)
        migrate(source, target, key)
        assert not executed(channel, change)
        assert channel.call("GET", key) == b"1"
        channel.call("WATCH", key)  # at the node that it has gone to
        with contextlib.closing(channel.broker.channel(key=tag)) as other:
            other.call("SET", key, "another's")
        assert not executed(channel, change)
        assert channel.call("GET", key) == b"another's"
        channel.call("WATCH", key)
        channel.call("UNWATCH")
        channel.call("WATCH", key)
        assert executed(channel, change)
        assert (here(source, key), here(target, key)) == ([], [key])


@pytest.mark.parametrize("has_asked", [True, False])
def test_a_watch_does_not_hold_at_another_owner(channel, tag, move, has_asked):
    key = f"{tag}:a"
    change = [("MULTI",), ("SET", key, "mine"), ("EXEC",)]
    channel.call("SET", key, 1)
    channel.call("WATCH", key)
    with move():
        pass
    if has_asked:
        with pytest.raises(Passing):
            channel.call("GET", key)
    else:
        assert not executed(channel, change)
    assert channel.call("GET", key) == b"1"
    channel.call("WATCH", key)
    assert executed(channel, change)


def test_subscribers_follow_their_slot(broker, channel, tag, move):
    with contextlib.closing(Subscription(broker, tag)) as subscription:
        assert channel.pubsub() == SHARDED
        assert subscription.newest() is None
        channel.call("SPUBLISH", tag, "before")
        assert wait_until(subscription.newest) == b"before"
        with move():
            channel.call("SPUBLISH", tag, "while")
            assert wait_until(subscription.newest) == b"while"

        def renewed():
            with contextlib.suppress(BrokerUnreachable):
                subscription.newest()
                return subscription.was_renewed

        wait_until(renewed)
        channel.call("SPUBLISH", tag, "after")
        assert wait_until(subscription.newest) == b"after"


def test_a_blocking_command_on_a_detour_is_woken(channel, tag, move):
    def block():
        replies.append(channel.call("BLPOP", f"{tag}:never", "30", timeout_s=40))

    replies, thread = [], threading.Thread(target=block)
    with move():
        thread.start()
        wait_until(lambda: channel._detour is not None)
        while thread.is_alive():  # it may come before the block
            channel.unblock()
            thread.join(0.02)
    assert replies == [None]
    assert channel.connects == 1


def test_a_single_server_is_no_cluster(embedded_broker):
    port = embedded_broker.settings.port
    with channel_to(f"redis+cluster://127.0.0.1:{port}") as channel:
        with pytest.raises(BrokerUnreachable, match="no cluster: use redis://"):
            channel.call("PING")
    with channel_to(f"redis://127.0.0.1:{port}") as channel:
        assert channel.pubsub() == PLAIN
        assert channel.at("{another}") is channel


def test_the_first_node_of_the_address_is_dead(cluster, tag):
    url = cluster.url.replace("//", "//127.0.0.1:1,")
    with contextlib.closing(Broker(BrokerURL.parse(url)).channel(key=tag)) as channel:
        assert channel.call("SET", tag, 1) == b"OK"


@pytest.fixture(scope="module")
def locked_node(tmp_path_factory):
    node = Node(
        tmp_path_factory.mktemp("locked"), "cluster-enabled yes\nrequirepass geheim\nsave ''"
    )
    node.client.connection_pool.connection_kwargs["password"] = "geheim"
    try:
        node.start().ask("CLUSTER", "ADDSLOTS", *range(16384))
        wait_until(lambda: "cluster_state:ok" in node.ask("CLUSTER", "INFO"))
        yield node
    finally:
        node.stop()


@pytest.mark.parametrize(
    ("login", "expected"), [(":falsch@", False), ("", False), (":geheim@", True)]
)
def test_passwords(locked_node, login, expected, monkeypatch):
    monkeypatch.delenv("AGENTLACE_PASSWORD", raising=False)
    url = BrokerURL.parse(f"redis+cluster://{login}127.0.0.1:{locked_node.port}")
    with contextlib.closing(Broker(url).channel(key="{a}")) as channel:
        if expected:
            assert channel.call("SET", "{a}", 1) == b"OK"
            return
        with pytest.raises(BrokerAuthFailed) as caught:
            channel.call("SET", "{a}", 1)
        assert "geheim" not in str(caught.value)
