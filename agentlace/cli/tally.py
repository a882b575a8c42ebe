"""What has come so far, and how fast it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from agentlace.wording import per_second, seconds, size

EVERY_S = 1.0


@dataclass
class _Count:
    messages: int = 0
    items: int = 0
    nbytes: int = 0
    missing: int = 0


@dataclass
class Tally:
    """Counts what comes, by source.

    Attributes:
        items: what is counted, such as ``transitions``.
        messages: what they come in, if several may come in one.
    """

    items: str
    messages: str = ""
    _all: _Count = field(default_factory=_Count)
    _lately: dict[str, _Count] = field(default_factory=dict)
    _began_s: float = field(default_factory=time.monotonic)
    _said_s: float = field(default_factory=time.monotonic)

    def add(self, source: str, items: int, nbytes: int, missing: int = 0) -> None:
        """Count one message."""
        for count in (self._all, self._lately.setdefault(source, _Count())):
            count.messages += 1
            count.items += items
            count.nbytes += nbytes
            count.missing += missing

    @property
    def seen(self) -> int:
        """How many have come."""
        return self._all.messages

    def rates(self) -> Iterator[str]:
        """Yield how fast it came from each source, if EVERY_S has passed and anything came."""
        passed_s = time.monotonic() - self._said_s
        if passed_s < EVERY_S:
            return
        lately, self._lately = self._lately, {}
        self._said_s += passed_s
        for source, count in sorted(lately.items()):
            yield f"-- {source}{': ' if source else ''}{self._rate(count, passed_s)}"

    def _rate(self, count: _Count, passed_s: float) -> str:
        parts = [f"{per_second(count.items / passed_s)} {self.items}/s"]
        if self.messages:
            parts.append(f"{per_second(count.messages / passed_s)} {self.messages}/s")
        parts.append(f"{size(count.nbytes / passed_s)}/s")
        if count.missing:
            parts.append(f"{count.missing:,} missing")
        return ", ".join(parts)

    def summary(self) -> str:
        """Return what came in all."""
        count, passed_s = self._all, time.monotonic() - self._began_s
        each = f", {size(count.nbytes / count.messages)} each" if count.messages else ""
        into = f" in {count.messages:,} {self.messages}" if self.messages else ""
        missing = f", {count.missing:,} missing" if count.missing else ""
        text = f"{count.items:,} {self.items}{into}, {size(count.nbytes)}{each}{missing}"
        return f"{text}, in {seconds(passed_s)}"
