"""Who may see the page, and who may push its buttons.

Two roles: ``viewer`` and ``admin``. A password makes a session; the session is a cookie that the
server has signed with a key of this process, so a restart ends all sessions. Without a viewer's
password (only on the loopback) everybody is a viewer; without an admin's password nobody is admin.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agentlace.config import BadSetting

VIEWER, ADMIN = "viewer", "admin"
COOKIE = "agentlace_session"
SESSION_S = 12 * 3600.0
"""A session ends so long after the password was typed."""
FREE_ATTEMPTS = 5
"""So many wrong passwords from one address cost nothing; then each doubles the pause."""
PAUSE_MAX_S = 60.0
ADDRESSES_MAX = 1000
"""Of so many addresses wrong passwords are counted, those of the others forgotten."""
PASSWORD_CHARS = 1024


@dataclass(frozen=True)
class Passwords:
    """The passwords; never shown.

    Attributes:
        viewer: None if everybody may look.
        admin: None if nobody may push the buttons.
    """

    viewer: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse two that are the same: every viewer would be an admin."""
        if self.viewer is not None and self.viewer == self.admin:
            problem = "it is the same as the viewers' password: choose another one"
            raise BadSetting("admin password", "***", problem)

    def role_of(self, typed: str) -> str | None:
        """Return the role that a password gives, None if it is wrong; in constant time."""
        given = hashlib.sha256(typed[:PASSWORD_CHARS].encode()).digest()
        found = None
        for role, password in ((VIEWER, self.viewer), (ADMIN, self.admin)):
            known = hashlib.sha256((password or "").encode()).digest()
            if hmac.compare_digest(given, known) and password is not None:
                found = role
        return found


class Sessions:
    """Signs and reads session cookies.

    Args:
        passwords: what they are given for.
        now_s: the time.
    """

    def __init__(self, passwords: Passwords, now_s: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._passwords = passwords
        self._now_s = now_s

    def new(self, role: str) -> str:
        """Return the cookie of a new session."""
        text = f"{role}.{self._now_s() + SESSION_S:.0f}.{secrets.token_urlsafe(9)}"
        return f"{text}.{self._signed(text)}"

    def role_of(self, cookie: str | None) -> str | None:
        """Return the role of whoever sent this cookie; None if it must log in."""
        anybody = VIEWER if self._passwords.viewer is None else None
        text, _, signature = (cookie or "").rpartition(".")
        if not text or not hmac.compare_digest(self._signed(text).encode(), signature.encode()):
            return anybody
        role, expires, _ = text.split(".")
        return role if self._now_s() < float(expires) else anybody

    def _signed(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Attempts:
    """Counts wrong passwords per address, and says how long to wait for the next attempt.

    Args:
        now_s: the time, monotonic.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._now_s = now_s
        self._wrong: dict[str, tuple[int, float]] = {}

    def wait_s(self, address: str) -> float:
        """Return the seconds until this address may try again."""
        with self._lock:
            _, free_at = self._wrong.get(_network(address), (0, 0.0))
            return max(free_at - self._now_s(), 0.0)

    def note(self, address: str, is_right: bool) -> None:
        """Take note of an attempt."""
        network = _network(address)
        with self._lock:
            count, free_at = self._wrong.pop(network, (0, 0.0))
            if is_right:
                return
            if self._now_s() - free_at > 10 * PAUSE_MAX_S:
                count = 0
            over = count + 1 - FREE_ATTEMPTS
            pause_s = min(2.0**over, PAUSE_MAX_S) if over >= 0 else 0.0
            self._wrong[network] = (count + 1, self._now_s() + pause_s)
            while len(self._wrong) > ADDRESSES_MAX:
                del self._wrong[next(iter(self._wrong))]


def _network(address: str) -> str:
    """Return what one person has: an IPv4 address, or a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(ipaddress.ip_network(f"{address.split('%')[0]}/64", strict=False))
