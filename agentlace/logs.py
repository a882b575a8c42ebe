"""What goes into the log beside its text, and how often.

Each module logs through its own ``logging.getLogger(__name__)``; nodes also through the logger of
their service (``agentlace.action``, ``agentlace.inference``, ``agentlace.trainer``), whose level
their ``log_level`` sets. Nothing is printed and no handler is installed: that is the program's.

Warnings and errors carry fields, so that a formatter that writes JSON has them without parsing:

========= ======================================================================================
namespace of the broker's keys
service   whose message it is or whom it concerns, as ``trainer:5588``
store     of transitions
peer      the node at the other end: an actor, a caller, a consumer
error     name of the exception's class
path      file or folder
unsaid    how often the same was not said since it was last said
========= ======================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

MAX_CAUSES = 32
"""So many different causes are told apart; the one that was said the longest ago gives way."""


def about(labels: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a message's fields, for ``extra=``.

    Args:
        labels: fields that come together, such as those of a store's keys.
        fields: further ones; an exception stands for the name of its class, and what is None is
            left out.
    """
    found = {**(labels or {}), **fields}
    return {
        name: type(value).__name__ if isinstance(value, BaseException) else value
        for name, value in found.items()
        if value is not None
    }


class Refrain:
    """Lets a message through once in a while, though its cause repeats with every call.

    Args:
        every_s: seconds until the same is said again.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._said: dict[Any, float] = {}
        self._unsaid: dict[Any, int] = {}
        self._due: Any = None

    def is_due(self, cause: Hashable | BaseException) -> bool:
        """Whether it should be logged: its cause is another one, or the time has passed.

        Args:
            cause: an exception stands for its class.
        """
        key: Any = type(cause) if isinstance(cause, BaseException) else cause
        now, before = time.monotonic(), self._said.get(key)
        if before is not None and now < before + self._every_s:
            self._unsaid[key] = self._unsaid.get(key, 0) + 1
            return False
        self._said.pop(key, None)
        self._said[key], self._due = now, key
        if len(self._said) > MAX_CAUSES:
            oldest = next(iter(self._said))
            self._said.pop(oldest, None)
            self._unsaid.pop(oldest, None)
        return True

    def note(self) -> str:
        """Return what to add to the message that was found due: how often it was not said."""
        unsaid = self._unsaid.pop(self._due, 0)
        return f" ({unsaid} times more since it was last said)" if unsaid else ""

    def say(
        self,
        write: Callable[..., None],
        cause: Hashable | BaseException,
        text: str,
        *args: Any,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a message if it is due.

        Args:
            write: the logger's method, such as ``log.warning``.
            cause: as for :meth:`is_due`.
            text: with places for ``args``.
            args: what goes there.
            extra: fields, from :func:`about`.
        """
        if self.is_due(cause):
            unsaid = self._unsaid.get(self._due, 0)
            fields = {**(extra or {}), "unsaid": unsaid}
            write(f"{text}%s", *args, self.note(), extra=fields, stacklevel=2)

    def reset(self) -> None:
        """Say the next one at once, after a success."""
        if self._said or self._unsaid:
            self._said.clear()
            self._unsaid.clear()
