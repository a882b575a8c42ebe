"""The process that keeps an embedded broker for as long as somebody uses it.

It is started by :func:`agentlace.transport.embedded.ensure`, reads its settings from standard
input, and belongs to nobody: a learner may be killed and come back.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time

from agentlace.errors import AgentlaceError, BrokerUnreachable
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.embedded import EmbeddedBroker, Settings


def supervise(settings: Settings, linger_s: float) -> None:
    """Run the broker until nobody has used it for ``linger_s`` seconds, or it ends by itself."""
    with (
        EmbeddedBroker(settings) as embedded,
        contextlib.closing(Broker(settings.url).channel()) as channel,
    ):
        last_used = time.monotonic()
        while time.monotonic() - last_used < linger_s:
            if embedded.wait(min(1.0, linger_s / 4)) is not None:
                return
            if _is_used(channel):
                last_used = time.monotonic()


def _is_used(channel: Channel) -> bool:
    """Whether the broker has clients beside this channel; one that is too busy to say does."""
    try:
        return bytes(channel.call("CLIENT", "LIST")).strip().count(b"\n") > 0
    except BrokerUnreachable:
        return True
    except AgentlaceError:
        return False


def main() -> int:
    """Supervise a broker as told on standard input, until SIGTERM at the latest."""
    settings, linger_s = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        supervise(Settings(**settings), linger_s)
    except KeyboardInterrupt:
        pass
    except (AgentlaceError, OSError) as error:
        sys.stderr.write(f"{getattr(error, 'reason', error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
