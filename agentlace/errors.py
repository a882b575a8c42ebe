"""The errors of agentlace.

::

    AgentlaceError
    ├── BrokerUnreachable    no broker answers at the address          (also a ConnectionError)
    ├── BrokerAuthFailed     the broker refuses the user or password   (also a PermissionError)
    │   └── TlsFailed        the broker's certificate, or ours, is not accepted
    ├── PeerAbsent           the broker is there, the other node isn't (also a ConnectionError)
    ├── ConfigMismatch       both ends disagree about one config field (also a ValueError)
    ├── RequestTimeout       no reply before the deadline              (also a TimeoutError)
    ├── RemoteError          the handler at the other end raised
    │   └── ControlHeld      another client alone may drive this robot
    ├── Busy                 so many calls wait at the server already that one more may not
    ├── Superseded           a newer call of the same client took this one's place
    ├── UnknownRequest       a key, type or store nobody declared      (also a ValueError)
    ├── RateLimited          more calls than ``rate_limit`` allows
    ├── EncodeError          a value that may not travel               (also a TypeError)
    ├── DecodeError          bytes that are not a whole, valid frame   (also a ValueError)
    ├── StoreFull            no room: a stream at its budget, a broker at maxmemory
    ├── ActorReplaced        a newer process took this actor's identity
    ├── AlreadyServed        another live server has this identity
    ├── SchemaMismatch       data that do not fit where they go        (also a ValueError)
    ├── NotReady             a policy server waits for its first network
    ├── NotEnoughData        a sample waited in vain for inserts       (also a TimeoutError)
    ├── CheckpointError      a checkpoint that cannot be saved or restored
    ├── MissingExtra         an optional dependency is not installed   (also an ImportError)
    └── Closed               use after ``stop()`` or ``close()``

Foreign errors (redis, sockets) are mapped to this tree in one place,
:mod:`agentlace.transport.connection`.
"""

from __future__ import annotations


class AgentlaceError(Exception):
    """Base class of everything that agentlace raises on purpose."""


class BrokerUnreachable(AgentlaceError, ConnectionError):
    """No broker answers at the address, or the connection to it was lost."""

    HINT = "start one with `agentlace broker`, or point AGENTLACE_BROKER at a running one"

    def __init__(self, url: str, reason: str = "", hint: str = HINT) -> None:
        """Name the address (without its password), what was seen there, and what to do."""
        self.url = url
        self.reason = reason
        seen = f" ({reason})" if reason else ""
        super().__init__(f"no broker at {url}{seen}{f': {hint}' if hint else ''}")


class BrokerAuthFailed(AgentlaceError, PermissionError):
    """The broker refuses the user, the password, or a command of this user."""

    def __init__(self, url: str, reason: str = "", user: str = "", command: str = "") -> None:
        """Name the address (without its password) and the broker's own words.

        Where the user was let in and may not do something, ``user`` and ``command`` say who may
        not do what; the command has its key, never its values.
        """
        self.url = url
        self.reason = reason
        self.user = user
        self.command = command
        if user:
            what = f"does not let user {user!r} do {command or 'this'!r} ({reason})"
            todo = "connect as the user whose role this is (docs/security.md says which)"
        else:
            what = f"refuses this user or password ({reason})"
            todo = (
                "put them into AGENTLACE_USERNAME and AGENTLACE_PASSWORD_FILE, into "
                "AGENTLACE_PASSWORD, or into the address (redis://user:password@host)"
            )
        super().__init__(f"the broker at {url} {what}: {todo}")

    @property
    def is_forbidden(self) -> bool:
        """Whether the user was let in, and this one command is what it may not do."""
        return bool(self.user)


class TlsFailed(BrokerAuthFailed):
    """No TLS with the broker: a certificate is not accepted, or one end does not speak TLS."""

    def __init__(self, url: str, reason: str, todo: str) -> None:
        """Name the address (without its password), what is wrong, and what to do."""
        self.url = url
        self.reason = reason
        self.user = self.command = ""
        AgentlaceError.__init__(self, f"no TLS with the broker at {url}: {reason}: {todo}")


class PeerAbsent(AgentlaceError, ConnectionError):
    """The broker answers, but the node at the other end is not there."""

    def __init__(self, role: str, name: str, last_seen: str | None = None, where: str = "") -> None:
        """Name the missing node, the broker looked at, and when it was last seen."""
        self.role = role
        self.name = name
        self.last_seen = last_seen
        seen = f"last seen {last_seen}" if last_seen else "never seen"
        super().__init__(f"no {role} {name!r} is running{f' at {where}' if where else ''} ({seen})")


class ConfigMismatch(AgentlaceError, ValueError):
    """Client and server were built with different configs."""

    def __init__(self, field: str, mine: object, theirs: object) -> None:
        """Name the first differing field and both values."""
        self.field = field
        self.mine = mine
        self.theirs = theirs
        super().__init__(
            f"config field {field!r} differs: {mine!r} here, {theirs!r} at the server; "
            "both ends must be built with the same config"
        )


class RequestTimeout(AgentlaceError, TimeoutError):
    """No reply came before the deadline.

    ``started`` is False when the request was withdrawn unread (it was never executed and never
    will be), True when a server had taken it, None when the broker could not be asked.
    """

    def __init__(self, what: str, timeout_s: float, started: bool | None = None) -> None:
        """Name the request, its deadline in seconds, and whether a server had taken it."""
        self.what = what
        self.timeout_s = timeout_s
        self.started = started
        fate = {
            False: "no server took it; it was withdrawn and will not be executed",
            True: "a server had taken it and may still be executing it",
            None: "whether a server took it is unknown",
        }[started]
        super().__init__(f"{what}: no reply within {timeout_s:g} s ({fate})")


class RemoteError(AgentlaceError):
    """The handler at the other end raised; its traceback is in that process's log."""

    def __init__(self, type: str, message: str) -> None:
        """Carry the remote exception's type name and message."""
        self.type = type
        self.message = message
        super().__init__(f"the server's handler raised {type}: {message}")


class ControlHeld(RemoteError):
    """Another client has taken control of this robot; nothing was executed."""

    def __init__(self, message: str) -> None:
        """Say who has control."""
        self.type = type(self).__name__
        self.message = message
        AgentlaceError.__init__(self, message)


class Busy(AgentlaceError):
    """So many calls wait at the server already that this one may not; it was not executed."""


class Superseded(AgentlaceError):
    """A newer call of the same client took this one's place; it was not executed."""


class UnknownRequest(AgentlaceError, ValueError):
    """A key, request type, interface or store that the other end does not offer."""


class RateLimited(AgentlaceError):
    """The call came sooner than the config's ``rate_limit`` allows."""


class EncodeError(AgentlaceError, TypeError):
    """A value that may not travel; ``path`` is where it sits in the tree."""

    def __init__(self, path: str, reason: str) -> None:
        """Name the place in the tree (``observations/wrist/0``) and what is wrong there."""
        self.path = path
        self.reason = reason
        super().__init__(f"cannot encode {path or 'the value'}: {reason}")


class DecodeError(AgentlaceError, ValueError):
    """Bytes that are not one whole, valid frame of this protocol."""


class StoreFull(AgentlaceError):
    """There is no room for more: the stream's budget or the broker's memory is used up."""


class ActorReplaced(AgentlaceError):
    """A newer process has taken this actor's identity; this one may not send any more."""


class AlreadyServed(AgentlaceError):
    """Another live server has this identity."""


class SchemaMismatch(AgentlaceError, ValueError):
    """A transition that does not fit its store, a network its actor, a payload its interface.

    Nothing of it was stored or sent, nobody was called back with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Name the leaf and both shapes or dtypes."""
        self.path = path
        self.reason = reason
        super().__init__(f"{path or 'the transition'}: {reason}")


class NotReady(AgentlaceError):
    """An interface needs a trainer's network, and none has come yet.

    Raised at the server; its callers get a RemoteError of this type.
    """


class NotEnoughData(AgentlaceError, TimeoutError):
    """A sample waited in vain for transitions to be inserted."""

    def __init__(self, missing: str, timeout_s: float) -> None:
        """Say what was missing when the time, in seconds, was over."""
        self.missing = missing
        self.timeout_s = timeout_s
        super().__init__(f"no sample within {timeout_s:g} s: {missing}")


class CheckpointError(AgentlaceError):
    """A checkpoint that cannot be saved or restored; what was there before is as it was."""

    def __init__(self, path: object, reason: str) -> None:
        """Name the checkpoint's folder, what is wrong with it, and what to do."""
        self.path = str(path)
        self.reason = reason
        super().__init__(f"checkpoint {self.path}: {reason}")


class MissingExtra(AgentlaceError, ImportError):
    """An optional dependency is missing; the message says which extra brings it."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package and the extra that installs it."""
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed: pip install 'agentlace[{extra}]'")


class Closed(AgentlaceError):
    """The object was stopped or closed before this call."""
