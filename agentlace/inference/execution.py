"""One function, several callers: their payloads stacked, each with an answer of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentlace.codec import Frame
from agentlace.errors import EncodeError, NotReady
from agentlace.inference.batching import Unbatched, rows_for, stack, take_apart
from agentlace.inference.call_queue import Waiting
from agentlace.inference.interface import Interface
from agentlace.transport.replies import Answer
from agentlace.transport.request_frames import Failures, Request

log = logging.getLogger(__name__)

Run = Callable[[Interface, Any], Any]
"""Calls an interface's function with a payload; returns its reply, or an Answer."""
Answered = tuple[Request, Frame | None]
"""A request with its answer; None if it gets none, since its time was over."""


def answers(
    batch: Sequence[Waiting],
    run: Run,
    is_expired: Callable[[Request], bool],
    failures: Failures,
) -> Iterator[Answered]:
    """Yield the answers to calls of one kind, all made in one call of their function.

    If that raises, each call is made by itself: so one caller's payload fails only its own call.
    Calls have no side effects, so it does no harm that some are made twice.
    """
    interface, requests = batch[0].interface, [waiting.request for waiting in batch]
    rows = rows_for(len(batch), interface.pad_to)
    try:
        reply = run(interface, stack([request.payload for request in requests], rows))
    except (Exception, SystemExit) as error:
        # An exit would leave all these callers, and a server that looks alive.
        if len(batch) == 1 or isinstance(error, NotReady):
            yield from ((request, _failed(request, error, failures)) for request in requests)
            return
        text = "a batch of %d calls of %r failed (%s: %s); they are made one by one"
        args = (len(batch), interface.name, type(error).__name__, error)
        failures.tell(log.warning, interface.name, error, text, *args)
        for waiting in batch:
            if is_expired(waiting.request):
                yield waiting.request, None
            else:
                yield from answers([waiting], run, is_expired, failures)
        return
    yield from _taken_apart(interface, requests, reply, rows, failures)


def _taken_apart(
    interface: Interface, requests: Sequence[Request], reply: Any, rows: int, failures: Failures
) -> Iterator[Answered]:
    about = None
    if type(reply) is Answer:
        reply, about = reply
    try:
        pick = take_apart(reply, rows)
    except Unbatched as error:
        yield from ((request, _failed(request, error, failures)) for request in requests)
        return
    if not interface.shapes.is_known:
        interface.shapes.learn(requests[0].payload, pick(0))
    for row, request in enumerate(requests):
        tree = pick(row) if about is None else Answer(pick(row), about)
        try:
            yield request, request.call.replies.encode((request.number,), tree)
        except EncodeError as error:
            yield request, _failed(request, error, failures)


def _failed(request: Request, error: BaseException, failures: Failures) -> Frame:
    return failures.reply(request.call, request.number, error)
