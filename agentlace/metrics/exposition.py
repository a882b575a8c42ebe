"""Numbers in the text format that Prometheus reads.

See https://prometheus.io/docs/instrumenting/exposition_formats and, for names and units,
https://prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agentlace.errors import MissingExtra
from agentlace.telemetry import METRICS, PREFIX, Metric, Sample

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

TOTAL = "_total"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_UNKNOWN = Metric("gauge", "A number of another version of agentlace.")


class Families:
    """Collects samples by name, which is how Prometheus wants them.

    Args:
        metrics: what the names stand for; others are taken for gauges.
    """

    def __init__(self, metrics: Mapping[str, Metric] = METRICS) -> None:
        self._metrics = metrics
        self._found: dict[str, Family] = {}
        self._seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()

    def add(self, samples: Iterable[Sample], labels: Mapping[str, str]) -> None:
        """Add samples, each with these labels beside its own.

        What would make the whole page unreadable is left out: names that may not be, and a second
        sample of the same name and labels.
        """
        for name, value, own in samples:
            series = name, frozenset({**labels, **own}.items())
            if series in self._seen or not all(map(_NAME.fullmatch, (name, *own))):
                continue
            self._seen.add(series)
            self._family(name).add_sample(PREFIX + name, {**labels, **own}, value)

    def _family(self, name: str) -> Family:
        if name not in self._found:
            try:
                from prometheus_client.core import Metric as Family
            except ImportError as error:
                raise MissingExtra("prometheus_client", "metrics") from error
            metric = self._metrics.get(name, _UNKNOWN)
            # The format names a counter without its ending, and its samples with it.
            family = PREFIX + (name.removesuffix(TOTAL) if metric.kind == "counter" else name)
            self._found[name] = Family(family, metric.help, metric.kind)
        return self._found[name]

    def all(self) -> list[Family]:
        """Return what was added, by name."""
        return [self._found[name] for name in sorted(self._found)]


class Collected:
    """What :mod:`prometheus_client` asks for all families at each scrape."""

    def __init__(self, collect: Any) -> None:
        self.collect = collect


def registry_of(collect: Any) -> Any:
    """Return a registry of prometheus_client that asks a function for the families.

    Raises:
        MissingExtra: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ImportError as error:
        raise MissingExtra("prometheus_client", "metrics") from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(collect))
    return registry
