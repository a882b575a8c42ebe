"""Callbacks for what programs report of themselves, such as losses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

ReportCallback = Callable[[dict[str, float], "int | None"], object]
"""Called with what the program reports, by name, and its step. If it has a ``flush``, that is
called when the node stops."""


@dataclass
class Listener:
    """A callback for reports, and how often it gets the node's own numbers beside them."""

    callback: ReportCallback
    own_every_s: float | None
    own_due_s: float = 0.0
    has_failed: bool = False

    def is_due(self) -> bool:
        """Whether the node's own numbers go with the report that is made now."""
        now_s = time.monotonic()
        if self.own_every_s is None or now_s < self.own_due_s:
            return False
        self.own_due_s = now_s + self.own_every_s
        return True

    def call(self, values: dict[str, float], step: int | None) -> None:
        """Call back; what is raised must not end a training run, and is logged once."""
        try:
            self.callback(values, step)
        except Exception as error:
            if not self.has_failed:
                text, fields = "a callback for reports failed: %r", {"error": type(error).__name__}
                log.exception(text, self.callback, extra=fields)
            self.has_failed = True
        else:
            self.has_failed = False

    def flush(self) -> None:
        """Let it write what it holds back, if it can."""
        flush = getattr(self.callback, "flush", None)
        if callable(flush):
            flush()
