"""Batches: payloads stacked, each caller with an answer of its own, nobody kept waiting in vain."""

import threading

import numpy as np
import pytest

from agentlace import InferenceClient, RemoteError
from agentlace.config import BadSetting
from agentlace.inference.batching import Unbatched, rows_for, stack, structure_of, take_apart
from agentlace.inference.interface import Interface
from agentlace.inference.traffic import LATELY_S, SKIPS_MAX, Traffic

from .inference_support import PORT, TIMEOUT_MS, Function
from .support import DEADLINE_S, InThread, assert_same, wait_until


def observation(i, size=3):
    return {"image": np.full((size, size, 3), i, np.uint8), "state": np.float32(i), "step": i}


def double(payload):
    assert payload["state"].dtype == np.float32 and payload["step"].dtype == np.int64
    return {"action": payload["image"].astype(np.float32) * 2, "at": payload["step"], "by": "me"}


def expected(i, size=3):
    action = np.full((size, size, 3), 2 * i, np.float32)
    return {"action": action, "at": np.int64(i), "by": "me"}


@pytest.fixture
def crowd(room):
    """Return a client and so many lines of clients of their own."""
    return lambda n: [room.client()._requests for _ in range(n)]


# -- trees -----------------------------------------------------------------------------------------


def test_trees_are_stacked_and_taken_apart():
    trees = [
        {"a": [np.arange(4) + i, (i, True, 0.5)], "text": f"cube {i}", "none": None}
        for i in range(3)
    ]
    stacked = stack(trees, 4)
    assert_same(stacked["a"][0], np.stack([np.arange(4) + i for i in (0, 1, 2, 2)]))
    assert_same(stacked["a"][1][0], np.array([0, 1, 2, 2]))
    assert stacked["text"] == ["cube 0", "cube 1", "cube 2", "cube 2"]
    pick = take_apart(stacked, 4)
    for i, tree in enumerate(trees):
        got = pick(i)
        assert_same(got["a"][0], tree["a"][0])
        assert got["a"][1] == tree["a"][1] and got["text"] == tree["text"]


def test_stacked_arrays_are_nobodys_memory():
    payload = np.arange(3)
    stacked = stack([payload], 1)
    stacked += 1
    assert_same(payload, np.arange(3))


@pytest.mark.parametrize(
    "one, other",
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.zeros(3, np.float32)),
        ({"a": 1}, {"b": 1}),
        ([1, 2], (1, 2)),
        ([1], [1, 2]),
        (1, "1"),
        (1, 1.0),
        (1, 1 << 70),
    ],
    ids=repr,
)
def test_trees_of_another_structure_are_told_apart(one, other):
    assert structure_of(one) != structure_of(other)


def test_the_order_of_keys_does_not_matter():
    assert structure_of({"a": 1, "b": 2.0}) == structure_of({"b": 3.0, "a": 4})


def test_jax_arrays_are_taken_apart():
    jnp = pytest.importorskip("jax.numpy")
    pick = take_apart({"action": jnp.arange(6.0).reshape(2, 3)}, 2)
    assert_same(pick(1)["action"], np.array([3, 4, 5], np.float32))


@pytest.mark.parametrize(
    "reply, words",
    [
        (np.zeros((3, 2)), "the reply has a leading dimension of 3, and the batch has 4 rows"),
        ({"a": {"b": np.zeros(5)}}, "a/b of the reply has a leading dimension of 5"),
        ([np.float32(1)], "0 of the reply has no leading dimension"),
        ({"texts": ["a", "b"]}, "texts of the reply has a leading dimension of 2"),
    ],
    ids=str,
)
def test_a_wrong_leading_dimension_is_named(reply, words):
    with pytest.raises(Unbatched, match=words):
        take_apart(reply, 4)


def test_sizes_of_batches():
    assert [rows_for(n, (1, 2, 4, 8)) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert rows_for(3, ()) == 3


@pytest.mark.parametrize(
    "settings",
    [
        dict(max_batch=0),
        dict(pad_to=(4, 2), max_batch=2),
        dict(pad_to=(1, 2), max_batch=4),
        dict(max_wait_ms=-1),
        dict(max_queue=0),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(BadSetting, match=next(iter(settings))):
        Interface("policy", double, **settings)


# -- whether to wait -------------------------------------------------------------------------------


def test_only_callers_of_late_are_waited_for():
    traffic = Traffic()
    for at_s, caller in enumerate((b"a", b"b", b"c")):
        traffic.note(caller, at_s * LATELY_S * 0.75)
    now = 1.5 * LATELY_S
    assert traffic.others({b"c"}, now) == 1  # b; a was there too long ago
    assert traffic.others({b"c", b"b"}, now) == 0
    assert traffic.others(set(), now + 2 * LATELY_S) == 0


def test_waits_in_vain_become_rare_and_one_that_pays_brings_them_back():
    traffic = Traffic()
    waits = 0
    for _ in range(1000):
        if traffic.is_worth_a_wait():
            waits += 1
            traffic.note_wait(0)
    assert waits < 1000 / SKIPS_MAX + 10
    while not traffic.is_worth_a_wait():
        pass
    traffic.note_wait(1)
    assert traffic.is_worth_a_wait() and traffic.is_worth_a_wait()


# -- the service -----------------------------------------------------------------------------------


def test_calls_that_wait_are_answered_in_one_batch(room, crowd):
    function = Function(double)
    server = room.server("policy", function, batch=True, pad_to=(1, 2, 4, 8), max_batch=8)
    lines = crowd(5)
    with function.held(lambda: room.client().call("policy", observation(9))):
        calls = room.calls(lines, "policy", map(observation, range(5)))
        wait_until(lambda: len(server._engine.desk.queue) == 5, what="five waiting calls")
    for i, call in enumerate(calls):
        assert_same(call.result(), expected(i))
    assert [len(p["image"]) for p in function.calls] == [1, 8]
    assert sorted(set(function.calls[1]["step"].tolist())) == list(range(5))
    assert server._engine.answered == 6 and server._engine.batched == 6


def test_a_batch_has_no_more_than_max_batch(room, crowd):
    function = Function(double)
    server = room.server("policy", function, batch=True, max_batch=3, max_wait_ms=0)
    with function.held(lambda: room.client().call("policy", observation(9))):
        calls = room.calls(crowd(7), "policy", map(observation, range(7)))
        wait_until(lambda: len(server._engine.desk.queue) == 7, what="seven waiting calls")
    for i, call in enumerate(calls):
        assert_same(call.result(), expected(i))
    assert [len(p["image"]) for p in function.calls] == [1, 3, 3, 1]


def test_other_shapes_are_other_batches(room, crowd):
    function = Function(double)
    server = room.server("policy", function, batch=True, max_wait_ms=0)
    sizes = [2, 3, 2, 3, 4, 2]
    with function.held(lambda: room.client().call("policy", observation(9))):
        payloads = [observation(i, size) for i, size in enumerate(sizes)]
        calls = room.calls(crowd(6), "policy", payloads)
        wait_until(lambda: len(server._engine.desk.queue) == 6, what="six waiting calls")
    for i, (call, size) in enumerate(zip(calls, sizes, strict=True)):
        assert_same(call.result(), expected(i, size))
    shapes = sorted(p["image"].shape for p in function.calls[1:])
    assert shapes == [(1, 4, 4, 3), (2, 3, 3, 3), (3, 2, 2, 3)]


def test_a_bad_payload_fails_only_its_own_call(room, crowd, caplog):
    def invert(payload):
        if (payload == 0).any():
            raise ZeroDivisionError("zero has no inverse")
        return 1 / payload

    function = Function(invert)
    server = room.server("invert", function, batch=True, max_wait_ms=0)
    with function.held(lambda: room.client().call("invert", np.array(1.0))):
        calls = room.calls(crowd(4), "invert", [np.array(float(i)) for i in range(4)])
        wait_until(lambda: len(server._engine.desk.queue) == 4, what="four waiting calls")
    with pytest.raises(RemoteError, match="zero has no inverse") as caught:
        calls[0].result()
    assert caught.value.type == "ZeroDivisionError"
    assert [call.result() for call in calls[1:]] == [1.0, 0.5, 1 / 3]
    assert "they are made one by one" in caplog.text


def test_a_wrong_number_of_rows_is_told_to_each_caller(room):
    room.server("policy", lambda payload: payload[:1].repeat(3, 0), batch=True)
    with pytest.raises(RemoteError, match="leading dimension of 3, and the batch has 1 rows"):
        room.client().call("policy", np.zeros(2))


def test_a_lone_client_does_not_wait_for_others(room):
    """It would take a minute for each call, if it did."""
    room.server("policy", double, batch=True, max_wait_ms=60_000)
    client = room.client()
    for i in range(20):
        assert_same(client.call("policy", observation(i)), expected(i))


def test_a_call_waits_for_those_who_called_lately(room):
    """Two clients that call at the same time come to be one batch, though the function is fast."""
    function = Function(double)
    room.server("policy", function, batch=True, max_wait_ms=TIMEOUT_MS, max_batch=2)
    lines = [room.client()._requests for _ in range(2)]
    for _ in range(12):  # a wait in vain is not tried again at once
        for i, call in enumerate(room.calls(lines, "policy", map(observation, range(2)))):
            assert_same(call.result(), expected(i))
        if len(function.calls[-1]["image"]) == 2:
            return
    pytest.fail("calls at the same time were never one batch")


def test_batched_and_other_interfaces_live_together(room):
    server = room.server("policy", double, batch=True)
    server.register_interface("echo", lambda payload: payload)
    client = room.client()
    assert client.interfaces() == {"policy", "echo"}
    for i in range(5):
        assert_same(client.call("policy", observation(i)), expected(i))
        assert client.call("echo", i) == i
    assert client.call("sing", 1)["success"] is False


def test_an_interface_may_be_batched_while_the_server_runs(room):
    server = room.server("echo", lambda payload: payload)
    client = room.client()
    assert client.call("echo", 1) == 1
    server.register_interface("policy", double, batch=True)
    assert_same(client.call("policy", observation(2)), expected(2))
    assert client.call("echo", 3) == 3


def test_many_clients_at_once_get_their_own(room):
    """Threads meet here: who takes, who looks out while a function runs, and heartbeats."""
    lock, active = threading.Lock(), []

    def policy(payload):
        assert lock.acquire(False), "functions never run at the same time"
        try:
            active.append(len(payload["image"]))
            return double(payload)
        finally:
            lock.release()

    server = room.server("policy", policy, batch=True, max_batch=8, pad_to=(1, 2, 4, 8))
    server.register_interface("echo", lambda payload: payload)
    clients = [
        InferenceClient("x", PORT, broker=room.url, timeout_ms=TIMEOUT_MS, strict=True)
        for _ in range(10)
    ]

    def work(number, client):
        for i in range(30):
            if (number + i) % 7 == 0:
                assert client.call("echo", (number, i)) == (number, i)
            else:
                size = 2 + (number + i) % 3
                value = (number * 31 + i) % 100
                assert_same(client.call("policy", observation(value, size)), expected(value, size))

    workers = [InThread(lambda n=n, c=c: work(n, c)) for n, c in enumerate(clients)]
    for worker in workers:
        worker.result(3 * DEADLINE_S)
    for client in clients:
        client.stop()
    assert server._engine.answered == 300
    assert max(active) > 1
