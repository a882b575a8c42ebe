"""What the broker's refusals mean."""

from __future__ import annotations

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed, BrokerUnreachable, StoreFull

_AUTH_CODES = frozenset({"NOAUTH", "WRONGPASS", "DENIED"})
_MOVING_CODES = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
_DEMOTED_CODES = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED"})
_RETRY_CODES = frozenset({"LOADING", *_MOVING_CODES, *_DEMOTED_CODES})
_FULL_CODES = frozenset({"OOM", "MISCONF"})


class Refused(AgentlaceError):
    """The broker refused a command; ``code`` is the first word of its answer."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"the broker refused a command: {text}")


class Passing(BrokerUnreachable):
    """The server that was asked cannot serve just now; it will soon, or another one does."""


def mapped_refusal(code: str, text: str, url: BrokerURL, command: str = "") -> AgentlaceError:
    """Return the agentlace error for a refusal: its code, its whole text, and what was refused."""
    if code == "NOPERM":
        return BrokerAuthFailed(str(url), text, url.username or "default", command)
    if code in _AUTH_CODES:
        return BrokerAuthFailed(str(url), text)
    if code in _RETRY_CODES:
        return Passing(str(url), text, hint="")
    if code in _FULL_CODES:
        return StoreFull(
            f"the broker at {url} has no room ({text}): start or speed up the consumers of its "
            "streams, or raise its maxmemory"
        )
    return Refused(code, text)
