"""What a server offers under a name: a function, and how calls of it are to be answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentlace.config import BadSetting
from agentlace.inference.specs import SEPARATOR, Shapes

Function = Callable[..., Any]
"""Called with a payload, or with several that are stacked; returns the reply's tree."""

BATCH_MAX = 1024
"""No interface batches more calls than this."""


@dataclass(frozen=True)
class Interface:
    """A function under a name, and how calls of it are answered. docs/inference.md explains it.

    Attributes:
        name: what clients call.
        fn: answers one payload; with ``batch``, several that are stacked.
        batch: whether ``fn`` takes payloads with a leading dimension, and gives replies with one.
        max_batch: so many calls are stacked at most.
        max_wait_ms: milliseconds that a call waits for others to come, where some are likely to.
        pad_to: sizes of batches, ascending; a batch is filled up to the next one with copies of
            its last row, whose replies nobody gets. Empty: as many rows as calls.
        idempotent: whether a call may be executed again, if the server that had it was lost.
        newest_only: whether a client's newer call takes the place of those that still wait.
        max_queue: so many calls may wait in one server; one more is refused as ``Busy``. None: as
            many as come wait, in the broker, for as long as their deadlines let them.
        version: tells interfaces of one name apart.
        inputs: a tree like one caller's payloads, as :class:`~agentlace.codec.Signature` takes
            it; others are refused. None takes every payload.
        outputs: a tree like one caller's replies, for who asks what there is; not checked.
        uses_weights: whether ``fn`` also gets the newest network: ``fn(payload, weights)``.
        shapes: what the interface takes and gives, as far as is known.
    """

    name: str
    fn: Function
    batch: bool = False
    max_batch: int = 32
    max_wait_ms: float = 2.0
    pad_to: tuple[int, ...] = ()
    idempotent: bool = False
    newest_only: bool = False
    max_queue: int | None = None
    version: str = "1"
    inputs: Any = None
    outputs: Any = None
    uses_weights: bool = False
    shapes: Shapes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the settings; raises BadSetting, which names the wrong one."""
        object.__setattr__(self, "pad_to", tuple(self.pad_to))
        sizes = self.pad_to
        ascends = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
        bounded = self.max_queue is None or self.max_queue >= 1
        self._check("fn", callable(self.fn), "it cannot be called")
        self._check("max_batch", 1 <= self.max_batch <= BATCH_MAX, f"it must be 1 to {BATCH_MAX}")
        self._check("max_wait_ms", self.max_wait_ms >= 0, "it must not be negative")
        self._check("pad_to", ascends, "sizes must ascend from 1 or more")
        fits = not sizes or sizes[-1] >= self.max_batch
        self._check("pad_to", fits, f"no size is enough for max_batch={self.max_batch}")
        self._check("max_queue", bounded, "it must be at least 1, or None")
        named = type(self.version) is str and self.version and SEPARATOR not in self.version
        self._check("version", bool(named), "it must be a text without @, such as '2'")
        object.__setattr__(self, "shapes", Shapes(self.inputs, self.outputs))

    def _check(self, setting: str, is_right: bool, problem: str) -> None:
        if not is_right:
            what = f"{setting} of interface {self.name!r}"
            raise BadSetting(what, getattr(self, setting), problem)

    @property
    def title(self) -> str:
        """Return what tells it from all other interfaces, and can be called: name@version."""
        return f"{self.name}{SEPARATOR}{self.version}"

    @property
    def is_queued(self) -> bool:
        """Whether its calls are looked at before it is their turn."""
        return self.batch or self.newest_only or self.max_queue is not None
