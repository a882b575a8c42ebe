"""What answers an inference service's calls: one at a time, or several at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentlace.codec import Frame
from agentlace.errors import AgentlaceError, Closed
from agentlace.inference.call_queue import BUSY
from agentlace.inference.desk import Desk
from agentlace.inference.execution import Answered, Run, answers
from agentlace.inference.interface import Interface
from agentlace.inference.lookout import Lookout
from agentlace.inference.taker import AT_ONCE, Taker
from agentlace.transport.connection import Broker
from agentlace.transport.inflight import NOWHERE, Intake
from agentlace.transport.keys import REPLY_MS, ServiceKeys
from agentlace.transport.request_frames import Request, failure
from agentlace.transport.request_server import JOIN_TIMEOUT_S, Handler, Outgoing, RequestServer

WAIT_SLICE_S = 0.05
"""A batch waits for so long at a time: those that it waits for may be gone."""
LAST_ATTEMPTS = 3
"""So often a server that stops tries to send its answers."""


class Engine(RequestServer):
    """Answers calls of interfaces.

    Where no interface looks at its calls before it is their turn, it does what its base does: it
    takes a request, calls the function, and sends the answer together with the next wait, all in
    one thread. Else the requests that come while a function runs are taken by a
    :class:`Lookout`, to a desk, and this thread goes on with what waits there.

    Args:
        broker: where.
        keys: which service.
        handler: answers whatever is not batched.
        token: this server's identity.
        intake: its places.
        interfaces: by name; others may add to them.
        run: calls a batched interface's function.
        others: returns how many other servers share the list.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        handler: Handler,
        token: str,
        intake: Intake,
        interfaces: Mapping[str, Interface],
        run: Run,
        others: Callable[[], int],
    ) -> None:
        super().__init__(broker, keys, handler, token, intake)
        self.desk = Desk(interfaces, self._told, self._is_expired, self._failures)
        desk = self.desk, self._note_unreadable
        self._taker = Taker(self._channel, keys, intake, *desk)
        taker = Taker(broker.channel(key=keys.prefix), keys, intake, *desk)
        self._lookout = Lookout(taker, keys, self.desk, interfaces, others)
        self._is_looking = False
        self._invoke = run
        self._until_s = float("inf")
        self.batches = 0
        self.batched = 0

    def look_out(self) -> None:
        """Look at calls before it is their turn from now on. Idempotent."""
        with self.desk.lock:
            if not self._is_looking:
                self._lookout.start()
            self._is_looking = True

    def _told(self, request: Request) -> Frame:
        return self._execute(request.call, request.number, request.payload)

    def _serve(self) -> None:
        answer: Outgoing | None = None
        try:
            while not self._stop.is_set():
                if self._intake.must_begin:
                    answer = self._begin_to_move(answer)
                if self.desk.queue.size:
                    answer = self._go_on(answer)
                    continue
                data, place, answer = self._wait(answer)
                if data is not None:
                    answer = self._accept(data, place)
            answer = self._drain(answer)
        except Closed:
            return
        finally:
            self._lookout.stop()
        self._send_last(answer)

    def _meet_broker(self) -> None:
        with self.desk.lock:  # no place is taken while what is in free ones is given back
            super()._meet_broker()
        self._taker.settle()

    def _begin_to_move(self, answer: Outgoing | None) -> Outgoing | None:
        """Take requests into places from now on; what is packed for an answer does not."""
        if answer is not None:
            self._flush(answer)
        self._insistently(self._meet_broker)
        return None

    def _is_expired(self, request: Request) -> bool:
        with self.desk.lock:  # two threads count
            return super()._is_expired(request)

    def _note_unreadable(self, data: Any, error: AgentlaceError) -> None:
        with self.desk.lock:
            super()._note_unreadable(data, error)

    def _accept(self, data: Any, place: int) -> Outgoing | None:
        """See to a request that came while nothing else waited."""
        request = self._read(data, place)
        if request is None:
            return None
        interface = self.desk.interface_of(request)
        if interface is None or not interface.is_queued:
            return self._respond(request)
        with self.desk.lock:
            answered = self.desk.enter(request)
        if answered:  # its time was over, or its payload does not fit
            frame = answered[0][1]
            if frame is not None:
                return self._outgoing(request, frame)
            self._drop(place)
            return None
        return self._go_on(None)

    def _respond(self, request: Request) -> Outgoing | None:
        if not self._is_looking:
            return super()._respond(request)
        self._begin()
        try:
            return super()._respond(request)
        finally:
            self._end()

    def _begin(self) -> None:
        """Take note that a function is called."""
        if self._is_looking:
            self.desk.running_since = time.monotonic()
            if self._lookout.is_asleep:
                self._lookout.wake()

    def _end(self) -> None:
        """Take note that it has returned; after that only this thread takes requests."""
        if self._is_looking:
            with self.desk.lock:
                self.desk.running_since = None

    def _go_on(self, answer: Outgoing | None, alone: bool = False) -> Outgoing | None:
        """Answer what is next of that which waits; ``alone``: without taking more."""
        if answer is not None:
            self._flush(answer)
        queue = self.desk.queue
        if not alone:
            try:
                self._gather()
            except Closed:
                raise
            except AgentlaceError as error:
                self._note_trouble(error)
        with self.desk.lock:
            overdue = [(w.request, None) for w in queue.expired(self._is_expired)]
            batch = queue.take()
        if overdue:
            self._send(overdue)
        if not batch:
            return None
        if not batch[0].interface.batch:
            return self._respond(batch[0].request)
        self._begin()
        try:
            answered = list(answers(batch, self._invoke, self._is_expired, self._failures))
        finally:
            self._end()
        self.batches += 1
        self.batched += len(batch)
        self.answered += sum(frame is not None for _, frame in answered)
        return self._sent(answered)

    def _sent(self, answered: list[Answered]) -> Outgoing | None:
        """Send answers; a single one is left to go together with the wait for the next request."""
        request, frame = answered[0]
        if len(answered) == 1 and frame is not None:
            return self._outgoing(request, frame)
        self._send(answered)
        return None

    def _gather(self) -> None:
        """Take what goes along with what is next, and wait for more if that pays."""
        queue = self.desk.queue
        first = queue.first()
        if first is None or not (first.interface.batch or first.interface.newest_only):
            return
        interface, traffic = first.interface, self.desk.traffic(first.interface.title)
        title, missing = interface.title, interface.max_batch - queue.alike(first.kind)
        if not traffic.others(queue.callers(title), time.monotonic()):
            return
        self._taker.grab(AT_ONCE if interface.newest_only else missing)
        if not interface.batch or not interface.max_wait_ms or not traffic.is_worth_a_wait():
            return
        until = time.monotonic() + interface.max_wait_ms / 1000
        before = queue.alike(first.kind)
        while queue.alike(first.kind) < interface.max_batch and not self._stop.is_set():
            now = time.monotonic()
            if now >= until or not traffic.others(queue.callers(title), now):
                break
            missing = interface.max_batch - queue.alike(first.kind)
            self._taker.grab(missing, min(until - now, WAIT_SLICE_S))
        traffic.note_wait(queue.alike(first.kind) - before)

    def _flush(self, answer: Outgoing) -> None:
        """Send an answer now, since there is no wait for it to go with."""
        commands = answer.envelope.commands(answer.frame)[:-1]

        def send() -> None:
            for reply in self._channel.exchange(commands):
                self._note_refusal(reply)

        if self._insistently(send):
            self._intake.free([answer.place])

    def _send(self, answered: Sequence[Answered]) -> None:
        """Send answers, however often the connection is lost."""
        left: list[Sequence[Answered]] = [answered]
        self._insistently(lambda: self._taker.send(left.pop() if left else ()))

    def _insistently(self, work: Callable[[], None]) -> bool:
        """Do something at the broker until it succeeds; whether it did, before the end."""
        attempts = 0
        while attempts < LAST_ATTEMPTS or not self._stop.is_set():
            try:
                if not self._channel.is_connected or self._channel.connects != self._connects:
                    self._meet_broker()
                work()
                self._backoff.reset()
                return True
            except Closed:
                raise
            except AgentlaceError as error:
                self._note_trouble(error)
            attempts += 1
        return False

    def _drain(self, answer: Outgoing | None) -> Outgoing | None:
        """Answer what was taken, as long as there is time, and give back the rest."""
        self._is_ending = True
        self._lookout.stop()
        while self.desk.queue.size and time.monotonic() < self._until_s:
            answer = self._go_on(answer, alone=True)
        self._give_back()
        return answer

    def _give_back(self) -> None:
        """Let others have what waits here; what cannot be given back is refused."""
        with self.desk.lock:
            requests = [waiting.request for waiting in self.desk.queue.clear()]
        commands = self._intake.give_back(request.place for request in reversed(requests))
        for request in requests:
            if request.place == NOWHERE:
                key, number = self._keys.reply(request.caller.hex()), request.number
                text = "the server stops, and the call had not begun"
                reply = failure(number, BUSY, text, BUSY.lower())
                commands += [("RPUSH", key, reply), ("PEXPIRE", key, REPLY_MS)]
        if not commands:
            return
        with contextlib.closing(self._broker.channel(1.0, self._keys.prefix)) as channel:
            try:
                channel.exchange(commands)
            except AgentlaceError as error:
                self._note_trouble(error)

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Take no more requests, and answer those that were taken.

        What has not begun when ``timeout_s`` is over goes back, for other servers to take.
        """
        self._until_s = time.monotonic() + timeout_s
        self._lookout.stop()
        super().stop(timeout_s)
        is_over = self._runner is None or self._done.is_set()
        if not is_over and self._runner is not threading.current_thread():
            self._give_back()
