"""What a row consists of: contestants, cases, metrics and goals."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

US = "agentlace"


@dataclass(frozen=True)
class Metric:
    """What is measured; ``unit`` and which direction is better."""

    name: str
    unit: str
    lower_is_better: bool = True


@dataclass(frozen=True)
class Goal:
    """A ratio ``above / below``, or a value ``above``, with a bound.

    Attributes:
        text: what the issue calls it.
        metric: name of the metric.
        above: contestants; of several that are here the best one counts.
        below: likewise; empty for a value instead of a ratio.
        least: the ratio must be at least this,
        most: or at most this.
    """

    text: str
    metric: str
    above: tuple[str, ...]
    below: tuple[str, ...] = ()
    above_stat: str = "median"
    below_stat: str = "median"
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Case:
    """One setting in which every contestant is measured.

    Attributes:
        params: what each contestant's ``measure`` gets as keywords.
        warmup: params that differ in the round that does not count.
        without: contestants that this setting is not for.
        x: place on a curve's axis, if the row is a curve.
    """

    name: str
    params: dict[str, Any]
    goals: tuple[Goal, ...] = ()
    rounds: int = 7
    warmup: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    x: float | None = None


Measure = Callable[..., dict[str, list[float]]]


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes:
        open: starts its processes on a stage and returns ``measure(**params)``, which measures
            one round and returns samples per metric.
    """

    name: str
    open: Callable[["Any"], Measure]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        bound_s: the row's wall-clock bound.
        x_name: of a curve's axis; empty if the row is no curve.
        notes: what a reader must know to read the numbers.
        rests: whether each turn waits until the machine is idle: contestants go on working after
            their turn. Not for calls: an idle machine takes longer to wake.
        missing: returns why the row cannot be measured on this machine; None if it can.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    contestants: tuple[Contestant, ...]
    cases: tuple[Case, ...]
    bound_s: float = 240.0
    x_name: str = ""
    notes: tuple[str, ...] = ()
    rests: bool = False
    missing: Callable[[], str | None] = lambda: None
