"""A policy that runs elsewhere and answers in action chunks, for loops that never wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np

from agentlace.data.columns import map_leaves
from agentlace.errors import AgentlaceError, Closed, SchemaMismatch, UnknownRequest
from agentlace.forks import check_process, process_number
from agentlace.inference import InferenceClient, PolicyVersion
from agentlace.inference.policy import policy_in
from agentlace.logs import Refrain, about
from agentlace.robot.blend import Blend, Latest
from agentlace.robot.plan import ActionPlan
from agentlace.robot.schedule import Schedule
from agentlace.transport.requests import RequestClient

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""A request that takes so many times longer than the longest before is given up."""

Fallback = Callable[[Any, int], Any]
"""Called with the observation and the tick; returns the action."""


class ChunkedPolicyClient:
    """Gives an action for each tick of a control loop, from chunks that are asked for meanwhile.

    The interface gets an observation and answers with the actions for its tick and those that
    follow: an array of shape (chunk, ...) or a tree of such, bare or under ``"actions"``. The
    newest observation is sent in the background, early enough for its answer to come before
    the known actions end, as far as ``chunk`` is longer than the latency.

    Threads: :meth:`step` belongs to the control loop's; requests have threads of their own.

    Args:
        client: of the inference service; it stays the caller's.
        name: of the interface.
        chunk: actions in a chunk.
        replan: ask for a new chunk after so many ticks at the latest; default half a chunk.
        rate_hz: of the control loop.
        blend: what to do where chunks overlap.
        on_underrun: at a tick without an action: ``"hold"`` repeats the last one, ``"zero"``
            gives zeros, a function is called with observation and tick.
        max_in_flight: so many requests may be under way at a time.

    Attributes:
        ticks: calls of :meth:`step`.
        underruns: ticks without an action of the policy.
        last_error: why the last request failed; None after an answer.
        last_policy_version: which policy made the last chunk; None if the server does not say so.
    """

    def __init__(
        self,
        client: InferenceClient,
        name: str,
        chunk: int,
        replan: int | None = None,
        rate_hz: float = 50.0,
        blend: Blend | None = None,
        on_underrun: str | Fallback = "hold",
        max_in_flight: int = 8,
    ) -> None:
        replan = max(1, chunk // 2) if replan is None else replan
        if not 0 < replan <= chunk:
            raise ValueError(f"replan={replan} must be 1 to chunk={chunk}")
        if not rate_hz > 0:
            raise ValueError(f"rate_hz={rate_hz} must be positive")
        if on_underrun not in ("hold", "zero") and not callable(on_underrun):
            raise ValueError(f"on_underrun={on_underrun!r}: use 'hold', 'zero' or a function")
        self._client = client
        self._name = name
        self._on_underrun = on_underrun
        self._lock = threading.Lock()
        self._schedule = Schedule(chunk, replan, 1 / rate_hz, max_in_flight)
        self._plan = ActionPlan(blend or Latest())
        self._lines = [client.line() for _ in range(max_in_flight)]
        self._free: SimpleQueue[RequestClient] = SimpleQueue()
        for line in self._lines:
            self._free.put(line)
        self._pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix=f"ask {name}")
        self._is_closed = False
        self._made_in = process_number()
        self._refrain = Refrain()
        self._last: Any = None
        self.ticks = 0
        self.underruns = 0
        self.last_error: AgentlaceError | None = None
        self.last_policy_version: PolicyVersion | None = None

    @property
    def latency_s(self) -> float | None:
        """Longest recent time from request to answer, in seconds; None before any."""
        with self._lock:
            return self._schedule.latency_s

    def start(self, observation: Any, timeout_s: float = 60.0) -> None:
        """Wait for the first chunk, which may take long: a policy is compiled with its first call.

        It is asked for twice, to measure the latency.

        Raises:
            RequestTimeout: none came in time; or what else a call raises.
            SchemaMismatch: the answer is no action chunk.
        """
        deadline = time.monotonic() + timeout_s
        self._ask(self._lines[0], observation, timeout_s)
        asked_s = time.monotonic()
        actions = self._ask(self._lines[0], observation, deadline - asked_s)
        with self._lock:
            self._plan.add(self.ticks, actions)
            self._schedule.measured(time.monotonic() - asked_s)

    def step(self, observation: Any) -> Any:
        """Return the action for this tick, at once.

        Only the first call, if there was no :meth:`start`, waits for the first chunk.

        Args:
            observation: any tree; its arrays may be reused afterwards.

        Raises:
            Closed: after :meth:`stop`.
        """
        check_process(self._made_in, f"this client of policy {self._name!r}")
        if self._is_closed:
            raise Closed("this policy client was stopped")
        if self._plan.end is None:
            self.start(observation)
        with self._lock:
            tick, now_s = self.ticks, time.monotonic()
            if self._schedule.is_due(tick, now_s, self._plan.end):
                number = self._schedule.asked(tick, now_s)
                self._pool.submit(self._fetch, number, tick, _snapshot(observation))
            action = self._plan.at(tick)
            self.ticks += 1
        if action is None:
            self.underruns += 1
            action = self._fallback(observation, tick)
        self._last = action
        return action

    def _fallback(self, observation: Any, tick: int) -> Any:
        if callable(self._on_underrun):
            return self._on_underrun(observation, tick)
        if self._on_underrun == "zero":
            return map_leaves(np.zeros_like, self._last)
        return self._last

    def _fetch(self, number: int, tick: int, observation: Any) -> None:
        """Ask for a chunk and add it to the plan; in a thread of the pool."""
        line, actions = self._free.get(), None
        try:
            actions = self._ask(line, observation, self._patience_s())
            self.last_error = None
        except AgentlaceError as error:
            self.last_error = error
            if not self._is_closed:
                self._warn(error)
        finally:
            self._free.put(line)
            with self._lock:
                self._schedule.answered(number, time.monotonic(), actions is not None)
        if actions is not None:
            self._add(tick, actions)

    def _add(self, tick: int, actions: Any) -> None:
        try:
            with self._lock:
                self._plan.add(tick, actions)
        except SchemaMismatch as error:
            self.last_error = error
            self._warn(error)

    def _warn(self, error: AgentlaceError) -> None:
        text, fields = "no actions from %r: %s", about(peer=self._name, error=error)
        self._refrain.say(log.warning, error, text, self._name, error, extra=fields)

    def _patience_s(self) -> float:
        """Return for how long to wait for an answer."""
        longest_s = self._client.timeout_ms / 1000
        latency_s = self.latency_s
        return longest_s if latency_s is None else min(longest_s, PATIENCE * latency_s + 0.05)

    def _ask(self, line: RequestClient, observation: Any, timeout_s: float) -> Any:
        self._client.check(self._name, observation)
        meta, answer = line.ask("call", self._name, observation, timeout_s)
        if isinstance(answer, dict) and answer.get("success") is False and "message" in answer:
            raise UnknownRequest(str(answer["message"]))
        self.last_policy_version = policy_in(meta)
        return answer["actions"] if isinstance(answer, dict) and "actions" in answer else answer

    def stop(self) -> None:
        """Stop asking; requests under way are given up. Idempotent."""
        self._is_closed = True
        if self._made_in != process_number():
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for line in self._lines:
            line.close()

    def __enter__(self) -> ChunkedPolicyClient:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def _snapshot(tree: Any) -> Any:
    """Return the tree with arrays of its own: it is encoded in another thread."""
    return map_leaves(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)
