"""Several policies behind one address: versions, what they take, and whose answer it is."""

import logging
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlace import (
    ArraySpec,
    ChunkedPolicyClient,
    EncodeError,
    InferenceClient,
    InferenceServer,
    RemoteError,
    SchemaMismatch,
)
from agentlace.config import BadSetting
from agentlace.errors import DecodeError
from agentlace.inference import PolicyAnswer, PolicyVersion, specs
from agentlace.inference.policy import policy_in

from .support import InThread, Log, assert_same, wait_until

PORT = 5600
INPUTS = {"image": ArraySpec((None, None, 3), "uint8"), "prompt": str}
OUTPUTS = {"actions": ArraySpec((16, 7), "float32")}
PAYLOAD = {"image": np.zeros((48, 64, 3), np.uint8), "prompt": "pick up the cube"}
ACTIONS = {"actions": np.zeros((16, 7), np.float32)}


@pytest.fixture
def server(running, broker_url):
    return running(InferenceServer(PORT, broker=broker_url))


@pytest.fixture
def make_client(running, broker_url):
    def make_client(**kwargs):
        kwargs = {"timeout_ms": 5000, "strict": True, **kwargs}
        return running(InferenceClient("localhost", PORT, broker=broker_url, **kwargs))

    return make_client


@pytest.fixture
def client(make_client):
    return make_client()


# -- versions --------------------------------------------------------------------------------------


def test_a_call_gets_the_version_that_it_names_or_the_default(server, client):
    for version in ("1", "2"):
        server.register_interface("policy", lambda _, v=version: v, version=version)
    server.register_interface("policy", lambda _: "trial", version="3-trial", default=False)
    server.start(threaded=True)
    assert client.call("policy", None) == "2"
    assert client.call("policy", None, version="1") == "1"
    assert client.call("policy@1", None) == "1"
    assert client.call("policy@3-trial", None) == "trial"
    assert client.interfaces() == {"policy"}


def test_an_older_version_can_be_made_the_default_again(server, client):
    server.start(threaded=True)
    for version in ("1", "2", "1"):
        server.register_interface("policy", lambda _, v=version: v, version=version)
        assert client.call("policy", None) == version
    assert [spec.version for spec in client.describe()] == ["1", "2"]


def test_the_first_version_is_the_default_in_any_case(server, client):
    server.register_interface("policy", lambda _: "a", version="a", default=False)
    server.register_interface("policy", lambda _: "b", version="b", default=False)
    server.register_interface("policy", lambda _: "new a", version="a", default=False)
    server.start(threaded=True)
    assert client.call("policy", None) == "new a"


def test_an_unknown_version_says_what_there_is(server, client):
    server.register_interface("policy", lambda _: 1, version="1")
    server.register_interface("policy", lambda _: 2, version="2")
    server.register_interface("value", lambda _: 3)
    server.start(threaded=True)
    answer = client.call("policy", None, version="9")
    assert answer["success"] is False
    known = "this server has 'policy' (versions 1, 2; 2 is the default), 'value'"
    assert answer["message"] == f"unknown interface 'policy@9'; {known}"


def test_a_name_with_an_at_sign_goes_before_a_version(server, client):
    server.register_interface("policy@2", lambda _: "the name")
    server.register_interface("policy", lambda _: "the version", version="2")
    server.start(threaded=True)
    assert client.call("policy@2", None) == "the name"
    assert client.interfaces() == {"policy", "policy@2"}


@pytest.mark.parametrize("version", ["", "a@b", 2, None])
def test_a_version_that_cannot_be_called_is_refused(server, version):
    with pytest.raises(BadSetting, match="version of interface 'policy'"):
        server.register_interface("policy", lambda _: 1, version=version)
    assert "policy" not in server.interfaces


# -- what an interface takes -----------------------------------------------------------------------


def serve_declared(server, **settings):
    calls = Log()

    def fn(payload):
        calls(payload)
        return ACTIONS

    server.register_interface("policy", fn, **{"inputs": INPUTS, "outputs": OUTPUTS, **settings})
    return calls


def test_interfaces_are_described_as_declared(server, client):
    client.timeout_ms = 100
    assert client.describe() == []
    client.timeout_ms = 5000
    serve_declared(server, version="2")
    server.start(threaded=True)
    (spec,) = client.describe()
    assert (spec.name, spec.version, spec.is_default, spec.uses_weights) == (
        *("policy", "2", True, False),
    )
    assert spec.inputs == {**INPUTS, "prompt": "str"} and spec.inputs_declared
    assert spec.outputs == OUTPUTS and spec.outputs_declared
    assert str(spec) == (
        "policy@2 (default)\n"
        "  in  image: uint8 of shape (*, *, 3)\n"
        "      prompt: str\n"
        "  out actions: float32 of shape (16, 7)"
    )


def test_what_was_not_declared_is_learned_from_the_first_successful_call(server, client):
    def fn(payload):
        return {"half": payload["state"] / 2}

    server.register_interface("policy", fn)
    server.start(threaded=True)
    (spec,) = client.describe()
    assert spec.inputs is spec.outputs is None and "not known" in str(spec)
    with pytest.raises(RemoteError, match="KeyError"):
        client.call("policy", {"wrong": 1})
    assert client.describe() == [spec]
    client.call("policy", {"state": np.ones(3)})
    (spec,) = client.describe()
    assert spec.inputs == {"state": ArraySpec((3,), "float64")} and not spec.inputs_declared
    assert spec.outputs == {"half": ArraySpec((3,), "float64")} and "(learned)" in str(spec)
    # What was learned refuses nothing that the function takes.
    assert_same(client.call("policy", {"state": np.ones(5)}), {"half": np.full(5, 0.5)})


@pytest.mark.parametrize("described", [True, False], ids=["after describe()", "by itself"])
def test_a_payload_is_checked_before_it_is_sent(server, client, described):
    calls = serve_declared(server)
    server.start(threaded=True)
    if described:
        client.describe()
    else:
        wait_until(lambda: client.call("policy", PAYLOAD) and client._checks, what="the specs")
    before = len(calls), client._requests.made
    wrong = {**PAYLOAD, "image": np.zeros((48, 64, 4), np.uint8)}
    for name in ("policy", "policy@1"):
        with pytest.raises(SchemaMismatch) as caught:
            client.call(name, wrong)
        assert caught.value.path == "image"
        found, wanted = "uint8 of shape (48, 64, 4)", "uint8 of shape (*, *, 3)"
        assert str(caught.value) == f"image: {found}, {wanted} was expected"
    assert len(calls) == before[0]
    assert_same(client.call("policy", PAYLOAD), ACTIONS)


def test_a_client_that_knows_no_specs_is_refused_by_the_server(server, client):
    calls = serve_declared(server)
    server.start(threaded=True)
    with pytest.raises(RemoteError, match="prompt: missing") as caught:
        client._requests.call("call", "policy", {"image": PAYLOAD["image"]}, 5.0)
    assert caught.value.type == "SchemaMismatch" and calls == []


def test_each_version_has_inputs_of_its_own(server, client):
    serve_declared(server, version="1")
    serve_declared(server, version="2", inputs={"state": ArraySpec(8, "float32")})
    server.start(threaded=True)
    client.describe()
    client.call("policy@1", PAYLOAD)
    client.call("policy", {"state": np.zeros(8, np.float32)})
    with pytest.raises(SchemaMismatch, match="state: missing"):
        client.call("policy", PAYLOAD)


def test_a_restarted_server_may_take_something_else(running, broker_url, client):
    other = {"state": np.zeros(8, np.float32)}
    for inputs, fits, not_ in ((INPUTS, PAYLOAD, other), (other, other, PAYLOAD), (None, 1, None)):
        with InferenceServer(PORT, broker=broker_url) as server:
            server.register_interface("policy", lambda payload: payload, inputs=inputs)
            server.start(threaded=True)
            # At once, though the client has not yet noticed that the server is another one.
            assert_same(client.call("policy", fits), fits)
            if not_ is not None:
                client.describe()
                with pytest.raises(SchemaMismatch):
                    client.call("policy", not_)


def test_inputs_declared_while_the_server_runs_reach_the_clients(server, client):
    server.register_interface("policy", lambda payload: payload)
    server.start(threaded=True)
    assert client.call("policy", 1) == 1
    serve_declared(server)

    def is_checked():
        try:
            client.check("policy", 1)
        except SchemaMismatch:
            return True

    wait_until(is_checked, what="the check")


def test_without_declarations_nothing_is_asked(server, client):
    server.register_interface("policy", lambda payload: payload)
    server.start(threaded=True)
    wait_until(lambda: client._server, what="that the client knows the server")
    made = client._requests.made
    for i in range(5):
        client.call("policy", i)
    assert client._requests.made == made + 5


def test_a_declaration_that_may_not_travel_is_refused(server):
    with pytest.raises(SchemaMismatch, match="x: object of shape"):
        server.register_interface("policy", lambda _: 1, inputs={"x": np.zeros(2, object)})
    assert "policy" not in server.interfaces


def test_a_reply_that_may_not_travel_is_not_learned(server, client):
    server.register_interface("policy", lambda _: {"model": object()})
    server.start(threaded=True)
    with pytest.raises(RemoteError, match="may not travel"):
        client.call("policy", 1)
    assert client.call("nobody", 1)["success"] is False
    assert [spec.name for spec in client.describe()] == ["policy"]
    with pytest.raises(EncodeError):
        client.call("policy", object())


def test_a_chunked_client_is_told_of_a_mismatch(server, client):
    serve_declared(server)
    server.start(threaded=True)
    client.describe()
    with ChunkedPolicyClient(client, "policy", chunk=16) as policy:
        with pytest.raises(SchemaMismatch, match="prompt: missing"):
            policy.start({"image": PAYLOAD["image"]})
        policy.start(PAYLOAD)
        assert policy.last_policy_version == PolicyVersion("policy", "1")


# -- whose answer it is ----------------------------------------------------------------------------


def test_every_answer_says_which_version_made_it(server, client):
    for version in ("1", "2"):
        server.register_interface("policy", lambda _, v=version: v, version=version)
    server.start(threaded=True)
    assert client.last_policy_version is None
    for asked, version in (("policy", "2"), ("policy@1", "1"), ("policy", "2")):
        assert client.call(asked, None) == version
        assert client.last_policy_version == PolicyVersion("policy", version)
        answer = client.call(asked, None, full=True)
        assert answer == PolicyAnswer(version, PolicyVersion("policy", version))
    assert str(client.last_policy_version) == "policy@2"
    client.call("nobody", None)
    assert client.last_policy_version is None


def test_an_answer_in_full_is_none_when_there_is_none(server, make_client):
    client = make_client(strict=False)
    server.register_interface("policy", lambda _: 1 / 0)
    server.start(threaded=True)
    assert client.call("policy", None, full=True) is None
    assert client.last_error.type == "ZeroDivisionError"


def test_versions_change_while_threads_call(server, make_client):
    """Each answer names the version that made it, however versions and threads interleave."""
    server.register_interface("policy", lambda _: "0", version="0")
    server.start(threaded=True)
    client, done = make_client(), threading.Event()

    def call():
        answers = []
        while not done.is_set():
            answers.append(client.call("policy", None, full=True))
        return answers

    threads = [InThread(call) for _ in range(4)]
    for number in range(1, 50):
        server.register_interface("policy", lambda _, n=number: str(n), version=str(number))
        client.call("policy", None)
    done.set()
    answers = [answer for thread in threads for answer in thread.result()]
    assert answers
    assert [a.value for a in answers] == [a.policy.version for a in answers]


def test_a_server_that_says_nothing_of_its_policy_is_understood(running, broker_url, client):
    """Such as one of an earlier version."""

    class Earlier(InferenceServer):
        def _handle(self, what, name, payload):
            answer = super()._handle(what, name, payload)
            return answer if what != "call" else answer.tree

        def _offers(self):
            return {}

    server = running(Earlier(PORT, broker=broker_url))
    server.register_interface("policy", lambda payload: payload)
    server.start(threaded=True)
    assert client.call("policy", 3, full=True) == PolicyAnswer(3, None)
    assert client.last_policy_version is None


def test_a_server_whose_specs_cannot_be_read_is_called_all_the_same(
    running, broker_url, client, caplog
):
    class Damaged(InferenceServer):
        def _handle(self, what, name, payload):
            return [{"name": 3}] if what == "describe" else super()._handle(what, name, payload)

    server = running(Damaged(PORT, broker=broker_url))
    serve_declared(server)
    server.start(threaded=True)
    wait_until(lambda: client._server, what="that the client knows the server")
    with caplog.at_level(logging.WARNING):
        assert_same(client.call("policy", PAYLOAD), ACTIONS)
    assert "payloads are not checked here: an interface without" in caplog.text


TOLD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["dict", "array", "<f4", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=10,
)
SPEC = st.fixed_dictionaries({key: TOLD for key in specs.InterfaceSpec.__dataclass_fields__})


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.lists(SPEC, max_size=3) | TOLD, st.lists(TOLD, max_size=5))
def test_what_a_hostile_server_tells_is_read_or_refused(told, policy):
    try:
        listed, checks = specs.read(told)
    except DecodeError:
        pass
    else:
        assert all(str(spec) for spec in listed) and all(type(name) is str for name in checks)
    assert policy_in({"policy": policy}) is None or len(policy) == 4


# -- in batches ------------------------------------------------------------------------------------


class Together:
    """Calls of several clients that wait for each other, so that they may share a batch."""

    def __init__(self, server, make_client, **settings):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.sizes = Log()
        self._make_client = make_client
        server.register_interface("hold", self._hold)
        for version in ("1", "2"):
            fn = self._answer(version)
            batch = {"batch": True, "max_wait_ms": 50, "version": version, **settings}
            server.register_interface("policy", fn, **batch)
        server.start(threaded=True)

    def _hold(self, _):
        self.entered.set()
        self.opened.wait(20)

    def _answer(self, version):
        def answer(payload):
            self.sizes((version, len(payload["state"])))
            return {"version": [version] * len(payload["state"]), "state": payload["state"]}

        return answer

    def call(self, asked):
        """Make calls, of a client each, while the server is busy; returns what becomes of them."""
        holding = InThread(lambda: self._make_client().call("hold", None))
        assert self.entered.wait(20)
        clients = [self._make_client() for _ in asked]
        calls = [
            InThread(lambda c=client, n=name, p=payload: c.call(n, p, full=True))
            for client, (name, payload) in zip(clients, asked, strict=True)
        ]
        wait_until(lambda: all(client._requests.made for client in clients))
        self.opened.set()
        holding.result()
        return calls


def test_versions_are_batched_apart(server, make_client):
    state = {"state": np.arange(3.0)}
    together = Together(server, make_client)
    names = ["policy", "policy@1", "policy@2", "policy@1"]
    versions = ["2", "1", "2", "1"]
    answers = [call.result() for call in together.call([(name, state) for name in names])]
    for answer, version in zip(answers, versions, strict=True):
        assert_same(answer.value, {"version": version, **state})
        assert answer.policy == PolicyVersion("policy", version)
    assert sum(size for _, size in together.sizes) == 4


def test_in_a_batch_only_the_payload_that_does_not_fit_is_refused(server, make_client):
    inputs = {"state": ArraySpec((None,), "float64")}
    fits, not_ = {"state": np.arange(3.0)}, {"state": np.arange(3)}
    together = Together(server, make_client, inputs=inputs)
    client = make_client()
    client.check = lambda *_: None  # as one that does not know yet
    with pytest.raises(RemoteError, match="state: int64 of shape"):
        client.call("policy", not_)
    calls = together.call([("policy", fits), ("policy", not_), ("policy", fits)])
    for i in (0, 2):
        assert_same(calls[i].result().value["state"], fits["state"])
    with pytest.raises((RemoteError, SchemaMismatch), match="state: int64 of shape"):
        calls[1].result()


def test_a_batched_interface_learns_what_one_caller_sends(server, make_client):
    together = Together(server, make_client)
    asked = [("policy", {"state": np.zeros(5), "prompt": text}) for text in ("a", "b", "c")]
    for call in together.call(asked):
        call.result()
    spec = next(spec for spec in make_client().describe() if spec.title == "policy@2")
    state = ArraySpec((5,), "float64")
    assert spec.inputs == {"state": state, "prompt": "str"}
    assert spec.outputs == {"version": "str", "state": state}
