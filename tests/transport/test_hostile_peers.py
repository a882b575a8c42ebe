"""What a hostile or broken peer writes into the broker does no harm to the others."""

import json
import math
import struct
import zlib

import numpy as np
import pytest
from transport_support import DEADLINE_S, once, wait_until

from agentlace import codec
from agentlace.errors import DecodeError
from agentlace.transport import presence, remembered
from agentlace.transport.broadcast import BroadcastWatcher
from agentlace.transport.inflight import NOWHERE
from agentlace.transport.remembered import REMEMBERED_CALLERS
from agentlace.transport.request_server import RequestServer
from agentlace.transport.requests import RequestClient
from agentlace.transport.streams import MAX_NUMBER, START, Retention, StreamId, cursors, trim_read
from agentlace.transport.weights import Manifest


@pytest.fixture
def served(broker, keys):
    server = RequestServer(broker, keys, lambda what, name, payload: payload, "token")
    server.start()
    client = RequestClient(broker, keys)
    yield server, client
    client.close()
    server.stop()


EVIL = b"evil" * 4


def request(number=1, deadline=1e18, tree=None, stamp=None, caller=EVIL, **changes):
    meta = {"what": "act", "name": "move", "run": "", "repeats": None, **changes}
    stamp = struct.pack("<Qd16s", number, deadline, caller) if stamp is None else stamp
    return bytes(codec.encode_stamped("request", meta, stamp, tree))


@once
@pytest.mark.parametrize(
    "changes",
    [
        *({"name": value} for value in (None, 1, b"move", ["move"], "x" * 2000)),
        *({"what": value} for value in ({}, None, "x" * 2000)),
        *({"repeats": value} for value in (1, b"x", "x" * 2000)),
        *({"run": value} for value in (None, "x" * 2000)),
        *({"stamp": value} for value in (b"", b"x", bytes(31))),
    ],
    ids=repr,
)
def test_a_request_that_makes_no_sense_is_dropped(served, channel, keys, changes, caplog):
    server, client = served
    channel.call("RPUSH", keys.requests, request(**changes))
    assert client.call("act", "move", 1, DEADLINE_S) == 1
    assert (server.answered, server.unreadable) == (1, 1)
    if "stamp" not in changes:
        assert keys.reply(EVIL.hex()) in caplog.text  # who it was
    assert max(len(record.message) for record in caplog.records) < 3000


@pytest.mark.parametrize("deadline", [math.nan, -math.inf, 0.0, -1.0])
def test_a_deadline_that_never_was_is_over(served, channel, keys, deadline):
    server, client = served
    channel.call("RPUSH", keys.requests, request(deadline=deadline))
    assert client.call("act", "move", 1, DEADLINE_S) == 1
    assert (server.answered, server.expired) == (1, 1)


@pytest.mark.parametrize("deadline", [math.inf, 1e300])
def test_a_deadline_that_never_comes(served, channel, keys, deadline):
    server, client = served
    channel.call("RPUSH", keys.requests, request(deadline=deadline))
    assert client.call("act", "move", 1, DEADLINE_S) == 1
    assert server.answered == 2


def test_a_flood_of_them_is_a_line_in_the_log(served, channel, keys, caplog):
    channel.call("RPUSH", keys.requests, *[b"rubbish"] * 500)
    assert served[1].call("act", "move", 1, DEADLINE_S) == 1
    assert caplog.text.count("dropped a request") == 1


def reply(number, meta, kind="reply", stamp=None):
    stamp = struct.pack("<Q", number) if stamp is None else stamp
    return bytes(codec.encode_stamped(kind, meta, stamp, 1))


OK = {"status": "ok"}


@pytest.mark.parametrize(
    "forged",
    [
        b"rubbish",
        bytes(codec.encode(1, "reply", OK)),
        bytes(codec.encode_stamped("request", OK, bytes(8), 1)),
        *(reply(12_345, OK), reply(12_345, {}), reply(0, OK, stamp=b"x"), reply(12_345, {"a": 1})),
        reply(12_345, OK)[:-1],
    ],
    ids=lambda forged: f"{zlib.crc32(forged):08x}",
)
def test_replies_that_nobody_sent_are_passed_over(served, channel, forged):
    client = served[1]
    channel.call("RPUSH", client._reply_key, forged, forged)
    assert client.call("act", "move", 1, DEADLINE_S) == 1


def test_a_reply_to_this_call_that_cannot_be_read_is_said(broker, keys, channel):
    client = RequestClient(broker, keys)
    ticket = client.ticket()
    channel.call("RPUSH", client._reply_key, reply(ticket.id, {"status": 7}))
    with pytest.raises(DecodeError):
        client.call("act", "move", 1, DEADLINE_S, ticket)
    client.close()


@once
def test_remembered_replies_are_bounded(broker, keys, monkeypatch):
    monkeypatch.setattr(remembered, "REMEMBERED_BYTES", 100_000)
    server = RequestServer(broker, keys, lambda what, name, payload: bytes(10_000), "token")
    for number in range(2 * REMEMBERED_CALLERS):
        caller = (number % 300).to_bytes(16, "little")
        server._answer(request(number, broker.now_ms() + 1e6, caller=caller), NOWHERE)
        kept = server._remembered
        nbytes = sum(f.nbytes for frames in kept.callers.values() for f in frames.values())
        assert nbytes == kept.nbytes <= 110_000
    assert len(server._remembered.callers) >= 9


def test_actors_without_a_name_are_left_out(record, actor, channel, store, keys, caplog):
    recorder = record()
    for key in (store.actors, store.closed):
        channel.call("SADD", key, b"\xff\xfe")
    channel.call("XADD", store.joined, "*", "actor", b"\xff\xfe")
    good = actor()
    good.send(0, 3)
    assert recorder.has(3)
    assert caplog.text.count(r"b'\xff\xfe' among the actors") <= 1
    assert trim_read(channel, store) >= 0


def test_consumers_without_a_name_are_left_out(channel, store):
    channel.call("SADD", store.consumers, b"\xff", "trainer")
    assert cursors(channel, store, "robot") == {"trainer": START}


@once
@pytest.mark.parametrize("value", [b"", b"x", b"1", b"1-", b"1-2-3", b"\xff"])
def test_a_damaged_cursor_trims_nothing(channel, store, value):
    channel.call("SADD", store.consumers, "trainer")
    channel.call("HSET", store.cursor("trainer"), "robot", value)
    assert cursors(channel, store, "robot") == {"trainer": START}


def test_the_largest_number_has_a_successor(channel, store):
    newest = StreamId(5, MAX_NUMBER)
    assert newest.next() == StreamId(6, 0) > newest
    channel.call("XADD", store.stream("robot"), str(newest), "first", "1")
    assert channel.call("XTRIM", store.stream("robot"), "MINID", str(newest.next())) == 1


def test_an_actor_at_the_end_of_its_numbers_harms_nobody(record, actor, channel, store, keys):
    recorder = record()
    channel.call("SADD", store.actors, "evil")
    channel.call("XADD", store.stream("evil"), f"1-{MAX_NUMBER}", "first", "1", "chunk", b"x")
    good = actor()
    good.send(0, 3)
    assert recorder.has(3)
    wait_until(lambda: recorder.positions.get("evil") == StreamId(1, MAX_NUMBER))
    wait_until(lambda: cursors(channel, store, "evil") == {"trainer": StreamId(1, MAX_NUMBER)})
    assert trim_read(channel, store) >= 1


@once
@pytest.mark.parametrize(
    "told",
    [
        *({"pid": value} for value in (-1, 1 << 70, "1", None, 1.5, True, [])),
        *({"progress_ms": value} for value in ("now", None, 1e300, -1, [], {})),
        *({name: 1} for name in ("role", "name", "host", "token", "machine", "config", "stores")),
        *(1, [1], "x", None),
    ],
    ids=repr,
)
def test_presence_that_makes_no_sense(channel, keys, told):
    channel.call("SET", keys.seen, json.dumps(told))
    for look in (lambda: presence.read_peer(channel, keys.seen), lambda: absent(channel, keys)):
        with pytest.raises(DecodeError, match=r"presence key .* is damaged"):
            look()


def absent(channel, keys):
    raise presence.absent(channel, keys)


@once
@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"", b"{", b'{"pid": ' + b"9" * 9999])
def test_presence_that_is_no_json(channel, keys, text):
    channel.call("SET", keys.server, text)
    with pytest.raises(DecodeError, match="damaged") as caught:
        presence.read_peer(channel, keys.server)
    assert len(str(caught.value)) < 500


def test_presence_that_says_little_is_filled_up(channel, keys):
    channel.call("SET", keys.server, "{}")
    peer = presence.read_peer(channel, keys.server)
    assert (peer["role"], peer["pid"], peer["token"]) == ("node", 0, "")


@pytest.mark.parametrize(
    "told", [None, 1, [], {}, {"max_bytes": -1, "when_full": "block"}, {"max_bytes": 1e400}]
)
def test_a_retention_that_makes_no_sense_is_the_default(told):
    assert Retention.of_info(told) == Retention()
    mine = Retention(5, "drop_oldest")
    assert Retention.of_info(mine.to_info() | {"of a later version": 1}) == mine


@pytest.mark.parametrize(
    "meta", [{"version": [math.inf, 1]}, {"nbytes": math.inf}, {"ms": 1 << 63}]
)
def test_a_manifest_of_impossible_numbers(meta):
    meta = {"version": [1, 1], "nbytes": 100, "ms": 0.0} | meta
    frame = codec.encode({"head": None, "leaves": None}, "weights", meta)
    with pytest.raises(DecodeError):
        Manifest.decode(bytes(frame))


@pytest.mark.parametrize(
    "tree", [None, 1, "ab", [1], (), {}, {"head": 1}, np.zeros(3), np.array({"head": 1}, object)]
)
def test_a_manifest_of_another_form(tree):
    frame = codec.encode(tree, "weights", {"version": [1, 1], "nbytes": 100, "ms": 0.0})
    with pytest.raises(DecodeError):
        Manifest.decode(bytes(frame))


@once
def test_an_observation_of_an_impossible_number(broker, channel, keys):
    seen = []
    watcher = BroadcastWatcher(broker, keys, seen.append)
    watcher.start()
    for number in (math.inf, math.nan, "x", None):
        frame = codec.encode(0, "obs", {"source": "evil", "number": number})
        channel.call("PUBLISH", keys.obs_channel, bytes(frame))

    def is_seen():
        frame = codec.encode(1, "obs", {"source": "good", "number": 1})
        channel.call("PUBLISH", keys.obs_channel, bytes(frame))
        return seen

    wait_until(is_seen)
    watcher.stop()
    assert seen == [1]
