"""A server that only is there: ``python presence_server.py URL NAMESPACE``; for test_presence."""

import signal
import sys
import threading

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker
from agentlace.transport.identity import describe
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.presence import Presence


def main(url, namespace):
    broker, keys = Broker(BrokerURL.parse(url)), ServiceKeys(namespace, "trainer", 5555)
    ended = threading.Event()
    info = describe("server", keys.name, exclusive=True, config={})
    presence = Presence(broker, keys.server, info, keys.seen, on_replaced=lambda error: ended.set())
    presence.acquire(exclusive=True)
    presence.start()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print("there", flush=True)
    ended.wait()
    print("replaced" if presence.replaced.is_set() else "ends", flush=True)
    presence.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
