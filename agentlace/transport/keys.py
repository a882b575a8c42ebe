"""Every key in the broker: its name, type, bound and expiry.

What must change together shares a hash tag (the braces), so that it shares a slot of a
cluster: a service's own keys, and the keys of one store.

=======================================  ========  ==============================  =============
key                                      type      bound                           expires
=======================================  ========  ==============================  =============
al:{ns:kind:port}:server                 string    one, JSON: who serves; of an    LEASE_MS
                                                   action service, who drives
al:{ns:kind:port}:seen                   string    one, JSON: who served last      SEEN_MS
al:{ns:kind:port}:client:<name>          string    one per client, JSON            LEASE_MS
al:{ns:kind:port}:requests               list      one per waiting caller          when popped
al:{ns:kind:port}:reply:<caller>         list      one per unread reply            REPLY_MS
al:{ns:inference:port}:server:<id>       string    one per server, JSON            LEASE_MS
al:{ns:inference:port}:servers           hash      one field per server: its       never; struck
                                                   number of places                off when gone
al:{ns:inference:port}:inflight:<id>:<n>  list     one request: in place n of      INFLIGHT_MS
                                                   server id                       after its
                                                                                   server's last
                                                                                   beat
al:{ns:inference:port}:again:<request>   string    a number: how often its server  AGAIN_MS
                                                   was lost
al:{ns:action:port}:obs                  string    newest observation              NEWEST_MS
al:{ns:action:port}:obs:new              channel
al:{ns:trainer:port}:weights             string    manifest of the newest version  never
al:{ns:trainer:port}:weights:new         channel
al:{ns:trainer:port}:weights:<v>:<i>:<j>  string   64 MiB; part j of leaf i as of  LEAF_MS, unless
                                                   version v                       of the newest
al:{ns:trainer:port}:weights:readers     hash      one field per slow receiver     READERS_MS
al:{ns:trainer:port}:roll                hash      one field per actor: the pause  never; struck
                                                   that it has seen                off when gone
al:{ns:trainer:port}:pause:new           channel
al:{ns:trainer:port}:commands            list      one per waiting operator        COMMANDS_MS
al:{ns:trainer:port}:answer:<id>         list      one, until it is popped         COMMANDS_MS
al:{ns:trainer:port:store}:actors        set       one per actor                   with its stream
al:{ns:trainer:port:store}:closed        set       actors that said goodbye        with its stream
al:{ns:trainer:port:store}:joined        stream    JOINED_MAX newest arrivals      never
al:{ns:trainer:port:store}:consumers     set       one per consumer                never
al:{ns:trainer:port:store}:cursor:<c>    hash      one field per actor             never
al:{ns:trainer:port:store}:applied:<c>   hash      one field per actor             never
al:{ns:trainer:port:store}:consumer:<c>  string    one per consumer, JSON          SEEN_MS
al:{ns:trainer:port:store}:broker        string    one, random: whose data this    never
                                                   is
al:{ns:trainer:port:store}:synced:<a>    string    one, empty of meaning           SYNCED_MS
al:{ns:trainer:port:store}:stream:<a>    stream    the store's retention budget    ORPHAN_MS
                                                                                   after its
                                                                                   actor vanished;
                                                                                   empty, FENCE_MS
                                                                                   after a goodbye
=======================================  ========  ==============================  =============
"""

from __future__ import annotations

from dataclasses import dataclass

LEASE_MS = 5_000
"""A node that has not refreshed its presence for so long is gone."""
HEARTBEAT_S = 1.0
"""How often a node refreshes its presence."""
SEEN_MS = 7 * 24 * 3600 * 1000
"""How long it is known when a server, or a consumer of a stream, was last there."""
REPLY_MS = 60_000
"""A reply that its caller has not fetched after so long is dropped."""
INFLIGHT_MS = 60_000
"""What a server had taken and not answered is kept for so long after its last heartbeat."""
AGAIN_MS = 600_000
"""How often a request was given to another server is known for so long."""
NEWEST_MS = 10_000
"""An observation is the newest for no longer than this."""
LEAF_MS = 600_000
"""Leaves that the newest network does not need are dropped after this, if not before.

They are of the network before it, of one that a slow receiver is fetching, or of one that was
never announced (its trainer died).
"""
READERS_MS = 600_000
"""What receivers are fetching is forgotten after this, if none of them says so again."""
COMMANDS_MS = 60_000
"""A command that no trainer takes, or an answer that nobody fetches, is dropped after this."""
ORPHAN_MS = 600_000
"""A stream that all consumers have read is kept for so long after its actor vanished."""
FENCE_MS = 24 * 3600 * 1000
"""An empty stream is kept for so long: its newest ID keeps a zombie of its actor out."""
SYNCED_MS = 60_000
"""What is written only to ask when it is on disk is kept for so long."""
JOINED_MAX = 1_000
"""Arrivals of actors that are remembered as wake-ups for consumers."""


@dataclass(frozen=True)
class ServiceKeys:
    """Keys of one service; ``kind`` is action, trainer or inference."""

    namespace: str
    kind: str
    port: int

    @property
    def prefix(self) -> str:
        """Return the common prefix with its hash tag."""
        return f"al:{{{self.namespace}:{self.kind}:{self.port}}}"

    @property
    def name(self) -> str:
        """Return how the service is called in messages."""
        return f"{self.kind}:{self.port}"

    @property
    def labels(self) -> dict[str, str]:
        """Return what a log's fields say of the service."""
        return {"namespace": self.namespace, "service": self.name}

    @property
    def server(self) -> str:
        """Return the presence key of the server."""
        return f"{self.prefix}:server"

    @property
    def seen(self) -> str:
        """Return the key that says who served last."""
        return f"{self.prefix}:seen"

    def client(self, name: str) -> str:
        """Return the presence key of one client."""
        return f"{self.prefix}:client:{name}"

    @property
    def requests(self) -> str:
        """Return the list that the server pops."""
        return f"{self.prefix}:requests"

    def reply(self, caller: str) -> str:
        """Return the list that one caller pops."""
        return f"{self.prefix}:reply:{caller}"

    def replica(self, server: str) -> str:
        """Return the presence key of one of several servers."""
        return f"{self.prefix}:server:{server}"

    @property
    def servers(self) -> str:
        """Return the hash of the servers that may have taken requests."""
        return f"{self.prefix}:servers"

    def inflight(self, server: str, place: int) -> str:
        """Return the list that holds the request in one of a server's places."""
        return f"{self.prefix}:inflight:{server}:{place}"

    def again(self, request: str) -> str:
        """Return the key that counts how often the server that had a request was lost."""
        return f"{self.prefix}:again:{request}"

    @property
    def newest_obs(self) -> str:
        """Return the key of the newest observation."""
        return f"{self.prefix}:obs"

    @property
    def obs_channel(self) -> str:
        """Return the channel of observations."""
        return f"{self.prefix}:obs:new"

    @property
    def weights(self) -> str:
        """Return the key of the newest version's manifest."""
        return f"{self.prefix}:weights"

    @property
    def weights_channel(self) -> str:
        """Return the channel of new versions."""
        return f"{self.prefix}:weights:new"

    @property
    def weights_readers(self) -> str:
        """Return the hash of the versions that receivers are fetching."""
        return f"{self.prefix}:weights:readers"

    @property
    def roll(self) -> str:
        """Return the hash of the actors that are there, and of the pause that each has seen."""
        return f"{self.prefix}:roll"

    @property
    def pause_channel(self) -> str:
        """Return the channel that tells actors to look whether there is a pause."""
        return f"{self.prefix}:pause:new"

    @property
    def commands(self) -> str:
        """Return the list of what operators want the trainer to do."""
        return f"{self.prefix}:commands"

    def answer(self, command: str) -> str:
        """Return the list that gets the answer to one command."""
        return f"{self.prefix}:answer:{command}"

    def leaf(self, version: str, leaf: int, part: int) -> str:
        """Return the key of one part of one leaf's bytes."""
        return f"{self.prefix}:weights:{version}:{leaf}:{part}"

    def store(self, name: str) -> StoreKeys:
        """Return the keys of one of the trainer's stores."""
        return StoreKeys(f"al:{{{self.namespace}:{self.kind}:{self.port}:{name}}}", name)


@dataclass(frozen=True)
class StoreKeys:
    """Keys of one store's streams."""

    prefix: str
    name: str

    @property
    def labels(self) -> dict[str, str]:
        """Return what a log's fields say of the store."""
        namespace, kind, port, _ = self.prefix.removeprefix("al:{").split(":", 3)
        return {"namespace": namespace, "service": f"{kind}:{port}", "store": self.name}

    @property
    def actors(self) -> str:
        """Return the set of actors that have a stream."""
        return f"{self.prefix}:actors"

    @property
    def closed(self) -> str:
        """Return the set of actors that said goodbye."""
        return f"{self.prefix}:closed"

    @property
    def joined(self) -> str:
        """Return the stream of arrivals."""
        return f"{self.prefix}:joined"

    @property
    def consumers(self) -> str:
        """Return the set of consumers for which streams are kept."""
        return f"{self.prefix}:consumers"

    def consumer(self, consumer: str) -> str:
        """Return the key that says who a consumer is, and when it last moved."""
        return f"{self.prefix}:consumer:{consumer}"

    def cursor(self, consumer: str) -> str:
        """Return the hash of a consumer's last IDs that may be trimmed as far as it goes."""
        return f"{self.prefix}:cursor:{consumer}"

    def applied(self, consumer: str) -> str:
        """Return the hash of the last applied IDs of a consumer that commits them later."""
        return f"{self.prefix}:applied:{consumer}"

    @property
    def identity(self) -> str:
        """Return the key that a broker that came back empty does not have."""
        return f"{self.prefix}:broker"

    def synced(self, actor: str) -> str:
        """Return the key that is written to ask when what came before it is on disk."""
        return f"{self.prefix}:synced:{actor}"

    def stream(self, actor: str) -> str:
        """Return the stream of one actor."""
        return f"{self.prefix}:stream:{actor}"
