"""Calls that wait: refused when there are too many, superseded, dropped, and taking turns."""

import contextlib
import time

import pytest

from agentlace import Busy, InferenceServer, RequestTimeout, Superseded
from agentlace.inference.call_queue import CallQueue, Waiting
from agentlace.inference.interface import Interface
from agentlace.transport.request_frames import Call, Request

from .inference_support import Function, waiting
from .support import DEADLINE_S, wait_until


def echo(payload):
    return payload


def many(n, room, client):
    return [room.line(client) for _ in range(n)]


# -- whose turn it is ------------------------------------------------------------------------------


class Queue:
    """A queue, and calls by client and number; what it says is said in these."""

    def __init__(self, **settings):
        self.interface = Interface("policy", echo, **settings)
        self.queue = CallQueue()
        self.numbers = {}

    def add(self, client, number, kind="one"):
        call = Call.of({"what": "call", "name": "policy", "run": "", "repeats": None})
        caller = client.encode().ljust(8, b".") + number.to_bytes(8, "big")
        request = Request(call, number, 1e18, caller, None, -1)
        refused = self.queue.add(Waiting(request, self.interface, ("policy", kind)))
        return [(r.kind, self._named(r.waiting)) for r in refused]

    def take(self):
        return [self._named(waiting) for waiting in self.queue.take()]

    @staticmethod
    def _named(waiting):
        return waiting.request.caller[:8].decode().rstrip("."), waiting.request.number


def test_clients_take_turns():
    queue = Queue()
    for number in range(3):
        queue.add("flood", number)
    queue.add("calm", 0)
    queue.add("other", 0)
    taken = [queue.take()[0] for _ in range(5)]
    assert taken == [("flood", 0), ("calm", 0), ("other", 0), ("flood", 1), ("flood", 2)]
    assert queue.take() == [] and len(queue.queue) == 0


def test_each_client_has_a_place_in_a_batch_before_any_has_two():
    queue = Queue(batch=True, max_batch=3)
    for number in range(4):
        queue.add("flood", number)
    queue.add("calm", 0)
    assert queue.take() == [("flood", 0), ("calm", 0), ("flood", 1)]
    assert queue.take() == [("flood", 2), ("flood", 3)]


def test_kinds_do_not_mix_and_none_is_left_behind():
    queue = Queue(batch=True)
    for client in "abc":
        for number, kind in enumerate(("small", "large")):
            queue.add(client, number, kind)
    batches = [queue.take() for _ in range(2)]
    assert batches == [[(c, n) for c in "abc"] for n in (0, 1)]


def test_who_has_most_waiting_makes_room():
    queue = Queue(max_queue=3)
    assert [queue.add("flood", number) for number in range(3)] == [[], [], []]
    assert queue.add("calm", 0) == [("Busy", ("flood", 2))]
    assert queue.add("flood", 3) == [("Busy", ("flood", 3))]
    assert queue.add("other", 0) == [("Busy", ("flood", 1))]
    assert queue.add("fourth", 0) == [("Busy", ("fourth", 0))]


def test_a_newer_call_takes_the_place_of_the_same_clients_older_ones():
    queue = Queue(newest_only=True)
    assert queue.add("a", 0) == queue.add("b", 0) == []
    assert queue.add("a", 1) == [("Superseded", ("a", 0))]
    assert sorted(queue.take() + queue.take()) == [("a", 1), ("b", 0)]


# -- the service -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batched"])
def test_too_many_calls_are_refused_at_once(room, batch):
    """While the function is held: nothing but a refusal can end these calls."""
    function = Function(echo)
    server = room.server("policy", function, batch=batch, max_queue=2)
    client, soft = room.client(), room.client(strict=False)
    with function.held(lambda: room.client().call("policy", 9)):
        calls = []
        for number, line in enumerate(many(2, room, client)):
            calls += room.calls([line], "policy", [number])
            wait_until(lambda n=number: waiting(server) == n + 1, what="a waiting call")
        for line in many(3, room, client):
            with pytest.raises(Busy, match="2 calls of 'policy' wait already"):
                line.call("call", "policy", 3, DEADLINE_S)
        # Another client has its turn all the same: the one with most calls makes room.
        (third,) = room.calls([soft._requests], "policy", [4])
        with pytest.raises(Busy):
            calls[1].result()
        assert waiting(server) == 2
    assert third.result() == 4 and calls[0].result() == 0
    assert server._engine.desk.refused == 4


def test_busy_gives_none_unless_strict(room):
    function = Function(echo)
    server = room.server("policy", function, max_queue=1)
    soft = room.client(strict=False)
    with function.held(lambda: room.client().call("policy", 9)):
        (call,) = room.calls([soft._requests], "policy", [1])
        wait_until(lambda: waiting(server) == 1, what="a waiting call")
        other = room.client(strict=False)
        assert other.call("policy", 2) is None
        assert isinstance(other.last_error, Busy)
        assert other.interfaces() == {"policy"}, "who asks what there is need not wait"
    assert call.result() == 1


def test_a_newer_call_of_a_client_takes_the_place_of_its_older_one(room):
    function = Function(echo)
    server = room.server("policy", function, newest_only=True)
    client, other = room.client(), room.client()
    lines = many(3, room, client)
    with function.held(lambda: room.client().call("policy", "held")):
        (theirs,) = room.calls([other._requests], "policy", ["theirs"])
        wait_until(lambda: waiting(server) == 1, what="the other client's call")
        calls = []
        for number, line in enumerate(lines):
            calls += room.calls([line], "policy", [number])
            wait_until(
                lambda n=number: waiting(server) == 2 and server._engine.desk.superseded == n,
                what="the newest call",
            )
            if number:
                with pytest.raises(Superseded, match="a newer call of 'policy'"):
                    calls[number - 1].result()
    assert theirs.result() == "theirs" and calls[-1].result() == 2
    assert function.calls[0] == "held" and set(function.calls[1:]) == {"theirs", 2}


def test_a_call_whose_time_is_over_is_not_executed(room):
    function = Function(echo)
    server = room.server("policy", function, max_queue=8)
    patient, hasty = room.client(), room.client(timeout_ms=200)
    with function.held(lambda: room.client().call("policy", "held")):
        (call,) = room.calls([patient._requests], "policy", ["patient"])
        with pytest.raises(RequestTimeout):
            hasty.call("policy", "hasty")
    assert call.result() == "patient"
    wait_until(lambda: waiting(server) == 0)
    assert function.calls == ["held", "patient"]


def test_a_flood_does_not_starve_another_client(room):
    function = Function(echo)
    server = room.server("policy", function, max_queue=100)
    flood, calm = room.client(), room.client()
    lines = many(12, room, flood)
    with function.held(lambda: room.client().call("policy", "held")):
        calls = room.calls(lines, "policy", ["flood"] * 12)
        wait_until(lambda: waiting(server) == 12, what="the flood")
        (theirs,) = room.calls([calm._requests], "policy", ["calm"])
        wait_until(lambda: waiting(server) == 13, what="the calm client's call")
    assert theirs.result() == "calm"
    assert [call.result() for call in calls] == ["flood"] * 12
    assert "calm" in function.calls[:3], function.calls


def test_lines_of_one_client_are_one_client_and_clients_are_not(room):
    room.server("policy", echo)
    client, other = room.client(), room.client()
    line = room.line(client)
    assert line.family == client._requests.family != other._requests.family
    assert line.call("call", "policy", 1, DEADLINE_S) == 1


def test_what_waits_is_answered_before_a_server_stops(room):
    function = Function(echo)
    server = room.server("policy", function, max_queue=8)
    lines = [room.client()._requests for _ in range(3)]
    with contextlib.ExitStack() as held:
        held.enter_context(function.held(lambda: room.client().call("policy", 9)))
        calls = room.calls(lines, "policy", range(3))
        wait_until(lambda: waiting(server) == 3, what="three waiting calls")
        stopping = room.in_thread(server.drain)
        wait_until(lambda: server._engine._stop.is_set())
    stopping.result()
    assert [call.result() for call in calls] == [0, 1, 2]
    assert not server.is_running


def test_what_has_not_begun_in_time_is_left_to_other_servers(room):
    """A broker in this process has no other servers: there it is refused."""
    function = Function(echo)
    server = room.server("policy", function, max_queue=8)
    lines = [room.client()._requests for _ in range(2)]
    held = room.client(strict=False, timeout_ms=3000)
    with function.held(lambda: held.call("policy", 9)):
        calls = room.calls(lines, "policy", range(2))
        wait_until(lambda: waiting(server) == 2, what="two waiting calls")
        server.drain(timeout_s=0.1)
        room.server("policy", echo)
        if room.url.startswith("memory"):
            for call in calls:
                with pytest.raises(Busy, match="the server stops"):
                    call.result()
        else:
            assert [call.result() for call in calls] == [0, 1]
            wait_until(lambda: held.last_error is not None, what="an answer to the held call")
            assert held.last_error.type == "ServerLost"
    assert function.calls == [9]


def test_a_server_starts_again_after_it_was_drained(room):
    server = room.server("policy", echo, batch=False, max_queue=3)
    client = room.client()
    assert client.call("policy", 1) == 1
    server.drain()
    assert isinstance(server, InferenceServer) and not server.is_running
    server.start(threaded=True)
    began = time.monotonic()
    assert client.call("policy", 2) == 2
    assert time.monotonic() - began < DEADLINE_S
