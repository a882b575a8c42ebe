"""Traffic through the broker.

::

    keys.py                 every key's name, type, bound and expiry
    connection.py           where the broker is; the only module that knows redis-py's errors
    tls.py                  certificates: what is checked, and what went wrong
    refusals.py             what the broker's refusals mean
    discovery.py            which server to connect to, of a cluster or under sentinels
    encounters.py           which server each channel has met
    clock.py                the broker's clock, as seen from here
    link.py                 one connection's socket, and its timeouts
    channel.py              what is said on one connection
    cluster_channel.py      the same with the node of a cluster that has the keys
    pubsub.py               what publish and subscribe are called
    resp.py                 the wire protocol
    envelope.py             a frame between commands that are the same again and again
    pool.py                 memory of large replies, used again
    backoff.py              pauses between attempts
    memory.py               a broker inside this process
    embedded.py             a broker process that needs no installation
    server_process.py       its program and its configuration
    secured.py              a directory with users, passwords and certificates for it
    supervisor.py           the process that keeps it while somebody uses it
    presence.py             who is there; the lease of a server
    peer_info.py            what nodes say of themselves
    requests.py             act, obs, call, request: the caller's end
    request_server.py       act, obs, call, request: the server's end
    request_frames.py       requests and replies: what is in their frames
    replies.py              replies: what they say beside their tree
    remembered.py           replies that are kept for requests that are repeated
    inflight.py             calls that a server has taken: where they are found if it is lost
    replicas.py             the servers of one service: each looks after the others
    streams.py              transitions: what both ends share
    producer.py             transitions: the actor's end
    facts.py                transitions: which broker it is, and what it writes to disk
    held.py                 transitions: what the broker has confirmed and may yet forget
    durability.py           transitions: finding out what it will not forget any more
    room.py                 transitions: the budget of an actor's stream
    consumer.py             transitions: the trainer's and the recorders' end
    cursor.py               transitions: where a consumer stands, and that others know it
    lag.py                  transitions: who the consumers are, and how far behind
    weights.py              networks: the manifest
    weights_publisher.py    networks: the trainer's end
    weights_receiver.py     networks: the actor's end
    broadcast.py            observations, newest only
    subscription.py         pub/sub of which only the newest message counts
"""
