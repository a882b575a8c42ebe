"""What is fuzzed: the decoder by itself, and services with a good client beside the hostile one."""

import contextlib
import threading

import numpy as np
from hypothesis import strategies as st

from agentlace.action import ActionClient, ActionConfig, ActionServer
from agentlace.codec import (
    ChunkDecoder,
    Signature,
    StampedDecoder,
    decode,
    decode_chunk,
    leaf_spans,
)
from agentlace.codec.unstamped import stamp_in
from agentlace.config import BrokerURL, TrainerConfig
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.errors import AgentlaceError, DecodeError, MissingExtra
from agentlace.inference import InferenceClient, InferenceServer
from agentlace.trainer import TrainerClient, TrainerServer
from agentlace.transport import identity, presence
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.request_server import REQUEST_STAMP
from agentlace.transport.streams import StreamId
from agentlace.transport.weights import Manifest

from . import hostile

DEADLINE_S = 20.0
ACTION = ActionConfig(1, ["move"], ["image"], broadcast_port=2)
TRAINER = TrainerConfig(1, request_types=["stats"])


def wait_until(condition, what):
    """Wait for a condition that comes true unless something hangs or has died."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError(f"{what} did not come within {DEADLINE_S} s")


def number_in(tree):
    """Return the number that a good peer sent, None for what a hostile one did."""
    number = tree.get("n") if isinstance(tree, dict) else None
    return int(number) if isinstance(number, (int, np.ndarray)) and np.ndim(number) == 0 else None


class Decoder:
    """The codec: whatever arrives is a value or DecodeError, never anything else."""

    frames = st.one_of(hostile.frames, hostile.chunks, hostile.requests, hostile.manifests)

    def __init__(self):
        self._chunks = ChunkDecoder()
        self._requests = StampedDecoder("request", REQUEST_STAMP, dict)
        self._readers = (
            lambda data: decode(data),
            lambda data: decode(bytearray(data)),
            lambda data: leaf_spans(memoryview(data)),
            lambda data: self._rows(decode_chunk(data)),
            lambda data: self._rows(self._chunks.decode(data)),
            Manifest.decode,
            lambda data: self._requests.decode(data),
            lambda data: stamp_in(data, REQUEST_STAMP),
        )

    def _rows(self, chunk):
        chunk.rows()
        chunk.tail(1).rows()

    def __call__(self, data):
        for read in self._readers:
            try:
                found = read(data)
            except MissingExtra:
                continue
            except DecodeError as error:
                assert "MemoryError" not in str(error), error
                assert len(str(error)) < 20_000
                continue
            with contextlib.suppress(AgentlaceError):
                Signature({"a": np.zeros(3)}).check(found)


class World:
    """Services and good clients at one broker, and a connection for the hostile ones."""

    def __init__(self, url, records):
        self.records = records
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        broker = Broker(BrokerURL.parse(url))
        self.channel = enter(contextlib.closing(broker.channel()))
        ns = broker.url.namespace
        self.trainer_keys = ServiceKeys(ns, "trainer", 1)
        self.action_keys = ServiceKeys(ns, "action", 1)
        self.inference_keys = ServiceKeys(ns, "inference", 1)
        self.elsewhere = ServiceKeys(ns, "trainer", 2)
        self.there = {"any": QueuedDataStore(10_000), "fixed": ReplayBuffer(capacity=1000)}
        self.here = {name: QueuedDataStore(1000) for name in self.there}
        self.networks, self.seen = [], []

        self.trainer = enter(
            TrainerServer(TRAINER, request_callback=lambda name, p: {"got": p}, broker=url)
        )
        for name, store in self.there.items():
            self.trainer.register_data_store(name, store)
        self.trainer.start(threaded=True)
        robot = ActionServer(ACTION, lambda keys: {"image": 1}, lambda key, p: p, broker=url)
        self.robot = enter(robot)
        self.robot.start(threaded=True)
        policy = enter(InferenceServer(1, broker=url))
        policy.register_interface("policy", lambda payload: payload)
        policy.start(threaded=True)
        waits = {"timeout_ms": 1000 * DEADLINE_S, "strict": True, "broker": url}
        waits_too = {"data_stores": self.here, "actor_id": "good", **waits}
        self.actor = enter(TrainerClient("arm", "x", TRAINER, **waits_too))
        self.actor.recv_network_callback(lambda tree: self.networks.append(number_in(tree)))
        self.driver = enter(ActionClient("x", ACTION, **waits))
        self.driver.register_obs_callback(lambda tree: self.seen.append(number_in(tree)))
        self.asker = enter(InferenceClient("x", 1, **waits))
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def call(self, *command):
        return self.channel.call(*command)

    def next(self):
        self.count += 1
        return self.count


class Requests:
    """The three request servers, and the replies to a good client."""

    def __init__(self, world):
        self.world = world
        keys = (world.trainer_keys, world.action_keys, world.inference_keys)
        self.frames = st.tuples(
            st.sampled_from(keys),
            st.lists(hostile.requests, min_size=1, max_size=3),
            hostile.replies,
        )

    def __call__(self, example):
        keys, sent, reply = example
        world, number = self.world, self.world.next()
        world.call("RPUSH", keys.requests, *sent)
        for client in (world.actor, world.driver, world.asker):
            if client._keys == keys:
                world.call("RPUSH", client._requests._reply_key, reply)
        if keys.kind == "trainer":
            assert world.actor.request("stats", number) == {"got": number}
        elif keys.kind == "action":
            assert world.driver.act("move", {"n": number}) == {"n": number}
        else:
            assert world.asker.call("policy", {"n": number}) == {"n": number}
        world.call("DEL", keys.reply(hostile.CALLER.hex()))


class Streams:
    """The chunk reader: hostile actors beside a good one, in the same store."""

    EVIL = "evil-actor"

    def __init__(self, world):
        self.world = world
        self.frames = st.tuples(
            st.sampled_from(sorted(world.there)),
            st.lists(hostile.entries, min_size=1, max_size=3),
            hostile.names,
            st.booleans(),
        )
        self._number = 1
        for name in world.there:  # the first transition tells the store what to expect
            self._send_good(name)

    def __call__(self, example):
        store, entries, name, is_joined = example
        world, keys = self.world, self.world.trainer_keys.store(store)
        world.call("SADD", keys.actors, self.EVIL, name)
        if is_joined:
            world.call("XADD", keys.joined, "*", "actor", name)
        rejected = world.trainer.counters()[store]["rejected"]
        for fields in entries:
            self._number += 5
            stream = keys.stream(self.EVIL)
            world.call("XADD", stream, f"1-{self._number}", *map(bytes, fields))
        self._send_good(store)
        consumer, last = world.trainer._stores._filled[store].consumer, StreamId(1, self._number)
        wait_until(lambda: consumer.positions.get(self.EVIL) == last, "the hostile stream's end")
        if world.trainer.counters()[store]["rejected"] > rejected:
            assert world.records.has(self.EVIL), "the offender is not named"
        world.call("SREM", keys.actors, name)

    def _send_good(self, store):
        """Send a good actor's row, and check that it is there, once."""
        world, number = self.world, self.world.next()
        world.here[store].insert({"o": np.full(3, number, np.float32)})
        assert world.actor.update_datastore(store, -1, confirm_update=True)
        there = world.there[store]
        rows = there.get_latest_data(max(there.latest_data_id() - 20, -1))
        good = [r for r in rows if isinstance(r, dict) and type(r.get("o")) is np.ndarray]
        assert [int(r["o"][0]) for r in good if r["o"].shape == (3,)].count(number) == 1


class Presence:
    """What nodes say of themselves."""

    def __init__(self, world):
        self.world = world
        self.frames = hostile.presence

    def __call__(self, text):
        world, keys = self.world, self.world.elsewhere
        for key in (keys.server, keys.seen, world.trainer_keys.client("evil")):
            world.call("SET", key, text)
        for look in (
            lambda: presence.read_peer(world.channel, keys.server),
            lambda: presence.absent(world.channel, keys),
            self._compare,
        ):
            with contextlib.suppress(AgentlaceError):
                look()
        world.call("DEL", keys.server, keys.seen)

    def _compare(self):
        """Do what a client does that finds such a server."""
        client, before = self.world.actor, self.world.actor._server
        peer = presence.read_peer(self.world.channel, self.world.elsewhere.server)
        try:
            identity.is_dead(peer | {"machine": identity._machine()})
            client._mismatch_with(peer)
            client._server = peer
            client._outboxes["any"].producer._room._retention()
            client._server_token()
        finally:
            client._server = before


class Weights:
    """Manifests of networks, in the notification and behind it."""

    def __init__(self, world):
        self.world = world
        self.frames = st.tuples(hostile.manifests, st.booleans())

    def __call__(self, example):
        manifest, is_told = example
        world, keys = self.world, self.world.trainer_keys
        world.call("PUBLISH", keys.weights_channel, manifest)
        if is_told:
            world.call("SET", keys.weights, manifest)
            world.call("PUBLISH", keys.weights_channel, b"")
        number = world.next()
        world.trainer.publish_network({"n": np.array(number)})
        wait_until(lambda: world.networks[-1:] == [number], "the good network")
        good = [n for n in world.networks if n is not None]
        assert good == sorted(set(good))
        del world.networks[:-1]


class Broadcast:
    """Observations, in the message and behind it."""

    def __init__(self, world):
        self.world = world
        self.frames = st.tuples(hostile.observations, st.booleans())

    def __call__(self, example):
        frame, is_beside = example
        world, keys = self.world, self.world.action_keys
        if is_beside:
            world.call("SET", keys.newest_obs, frame)
            world.call("PUBLISH", keys.obs_channel, b"")
        else:
            world.call("PUBLISH", keys.obs_channel, frame)
        with contextlib.suppress(AgentlaceError):
            world.driver.latest_obs()
        number = world.next()

        def is_seen():
            assert world.robot.publish_obs({"n": number})
            return world.seen[-1:] == [number]

        wait_until(is_seen, "the good observation")
        del world.seen[:-1]
