"""Keys: the table in the docstring says what there is, and the live system keeps to it."""

import contextlib
import re

import numpy as np
import pytest
from stream_support import STORE
from transport_support import wait_until
from weights_support import LARGE, network, publish

from agentlace.transport import keys as keys_module
from agentlace.transport.broadcast import BroadcastPublisher
from agentlace.transport.identity import describe
from agentlace.transport.keys import ServiceKeys, StoreKeys
from agentlace.transport.presence import Presence
from agentlace.transport.requests import RequestClient, RequestServer
from agentlace.transport.weights_pins import Pin


def table():
    """Return the table's rows: the key's pattern, its type, and what it says of expiry."""
    found = re.findall(r"^(al:\S+)  +(\S+) *(.*)$", keys_module.__doc__, re.MULTILINE)
    assert len(found) > 15
    return {pattern: (kind, rest) for pattern, kind, rest in found}


def methods(owner):
    """Return every key that a class of keys makes, for the namespace ns."""
    service = ServiceKeys("ns", "trainer", 5555)
    made = service if owner is ServiceKeys else service.store(STORE)
    for name, member in vars(owner).items():
        if name in ("prefix", "name", "labels", "store") or name.startswith("_"):
            continue
        if isinstance(member, property):
            yield getattr(made, name)
        elif callable(member):
            arguments = {"leaf": ("7-1", 2, 3), "reply": ("c1",), "inflight": ("s1", 3)}
            yield getattr(made, name)(*arguments.get(name, ("robot",)))


def as_expression(pattern, namespace="ns"):
    """Return what the keys of a pattern match; the tests have a trainer only."""
    tag = f"{namespace}:trainer:5555"
    pattern = pattern.replace("{ns:trainer:port:store}", f"{{{tag}:{STORE}}}")
    for service in ("ns:kind:port", "ns:action:port", "ns:inference:port", "ns:trainer:port"):
        pattern = pattern.replace(service, tag)
    return re.compile(re.sub("<[a-z]+>", "[^:]+", re.escape(pattern)))


def test_every_key_of_the_table_has_a_method_and_the_other_way_round():
    made = {*methods(ServiceKeys), *methods(StoreKeys)}
    patterns = {pattern: as_expression(pattern) for pattern in table()}
    for pattern, expression in patterns.items():
        assert any(expression.fullmatch(key) for key in made), pattern
    for key in made:
        assert any(expression.fullmatch(key) for expression in patterns.values()), key


def test_what_changes_together_shares_a_slot():
    service = ServiceKeys("ns", "trainer", 5555)
    tag = re.compile(r"\{([^}]*)\}")
    assert {tag.search(key)[1] for key in methods(ServiceKeys)} == {"ns:trainer:5555"}
    assert {tag.search(key)[1] for key in methods(StoreKeys)} == {f"ns:trainer:5555:{STORE}"}
    assert service.name == "trainer:5555"


def test_namespaces_and_services_do_not_meet():
    services = [
        ServiceKeys(namespace, kind, port)
        for namespace in ("a", "b")
        for kind in ("trainer", "action", "inference")
        for port in (1, 2)
    ]
    assert len({service.requests for service in services}) == 12
    assert len({service.store("s").actors for service in services}) == 12


@pytest.fixture
def live(broker, keys, actor, record, trainer, channel):
    """A system in which every kind of traffic has taken place."""
    with contextlib.ExitStack() as stack:
        recorder, robot = record(), actor()
        robot.send(0, 10)
        assert recorder.has(10)
        for key, seen in ((keys.server, keys.seen), (keys.client("robot"), None)):
            presence = Presence(broker, key, describe("node", "robot"), seen)
            stack.callback(presence.stop)
            presence.acquire(exclusive=False)
        publisher = trainer()
        for n in (1, 2, 3):
            publish(publisher, n, LARGE)
        channel.exchange(Pin(channel, keys).hold("7-1"))
        observed = stack.enter_context(contextlib.closing(BroadcastPublisher(broker, keys, "t")))
        observed.publish(network(1))
        server = RequestServer(broker, keys, lambda *_: np.zeros(3), "token")
        client = stack.enter_context(contextlib.closing(RequestClient(broker, keys)))
        channel.call("RPUSH", keys.requests, client._encode("obs", "", 1, client.ticket(), 1e9))
        server.start()
        stack.callback(server.stop)
        wait_until(lambda: channel.call("EXISTS", client._reply_key))
        store = keys.store(STORE)
        wait_until(lambda: channel.call("EXISTS", store.cursor("trainer")))
        yield store


def test_keys_of_a_live_system(live, channel, keys, namespace):
    """Every key is in the table, is of its type, and expires if and only if the table says so."""
    patterns = {as_expression(pattern, namespace): row for pattern, row in table().items()}
    seen = set()
    nodes = [channel.at(keys.prefix), channel.at(live.prefix)]  # KEYS knows only its node's
    found = {bytes(key) for node in nodes for key in node.call("KEYS", f"al:?{namespace}:*")}
    for key in map(bytes.decode, found):
        (row,) = [row for expression, row in patterns.items() if expression.fullmatch(key)]
        kind, rest = row
        seen.add(rest)
        assert bytes(channel.call("TYPE", key)).decode() == kind, key
        bound = re.search(r"([A-Z]+)_MS", rest)
        remaining = channel.call("PTTL", key)
        if bound and bound[0] not in ("ORPHAN_MS", "LEAF_MS"):
            assert 0 < remaining <= getattr(keys_module, bound[0]), key
        elif not bound:
            assert remaining == -1, key
    assert len(seen) >= 10


def test_rows_have_no_expiry_while_their_actor_is_there(live, channel):
    assert channel.call("PTTL", live.stream("robot")) == -1
    assert channel.call("PTTL", live.cursor("trainer")) == -1
