"""``agentlace services``: what is offered, and calling one of it by hand."""

import contextlib
import json
import os
import socket
import sys

import numpy as np
import pytest

from agentlace.cli import main, services, values
from agentlace.codec.images import encode_image
from agentlace.errors import PeerAbsent, RemoteError, UnknownRequest
from tests.cli.operated import policy, robot, run, run_json, trainer_and_actor


@pytest.fixture
def system(broker_environment, running):
    running(trainer_and_actor())
    running(policy())
    return running(robot())[1]


@pytest.fixture
def running():
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def call(*arguments):
    return run("services", "call", *arguments)


def test_what_is_offered(system):
    found = {service["name"]: service for service in run_json("services", "--json")}
    assert found.keys() == {"action:5556", "inference:5600", "trainer:5555"}
    assert found["action:5556"]["calls"] == ["obs image state", "act move"]
    assert found["inference:5600"]["calls"] == ["policy"]
    trainer = found["trainer:5555"]
    assert (trainer["calls"], trainer["stores"], trainer["clients"]) == (["done"], ["env"], 1)
    assert trainer["server"] == f"{socket.gethostname()} pid {os.getpid()}"
    text = run("services").stdout
    assert "agentlace services call action:5556 act move" in text
    assert "stores: env" in text


def test_nothing_is_offered(broker_environment):
    assert "no services at" in run("services").stdout
    assert run_json("services", "--json") == []


def test_a_server_that_is_gone(broker_environment):
    with robot():
        pass
    (service,) = run_json("services", "--json")
    assert service["server"] is None
    assert "no server is there" in run("services").stdout
    with pytest.raises(PeerAbsent, match="action:5556"):
        call("action:5556", "obs")


def test_an_observation(system):
    text = call("action:5556", "obs").stdout
    assert "image: uint8[4, 4, 3] min 0 max 0: [0, 0, 0, 0, …]" in text
    assert "state: float64[7] min 0 max 6: [0, 1, 2, 3, …]" in text
    only = json.loads(call("action:5556", "obs", "state", "--json").stdout)
    assert only == {"state": {"$array": list(range(7)), "dtype": "float64"}}
    with pytest.raises(UnknownRequest, match=r"'stat'.*'image', 'state'"):
        call("action:5556", "obs", "stat")


def test_an_action(system):
    answer = call("action:5556", "act", "move", '{"delta": [0.1, 0.2], "times": 2}', "--json")
    assert json.loads(answer.stdout)["done"] is True
    ((key, payload),) = system
    assert key == "move" and payload["times"] == 2
    assert payload["delta"].dtype == np.float32
    assert payload["delta"].tolist() == pytest.approx([0.1, 0.2])


def test_it_asks_before_something_moves(system, monkeypatch):
    monkeypatch.setattr(services, "_asks", lambda: True)
    assert call("action:5556", "act", "move").exit_code == 1
    assert not system
    assert call("action:5556", "act", "move", "--yes").exit_code == 0
    assert len(system) == 1
    assert call("action:5556", "obs").exit_code == 0, "which moves nothing"


def test_an_interface_and_a_request(system):
    text = call("inference:5600", "policy", '{"state": [1, 2]}', "--dtype", "float64").stdout
    assert text.startswith("action: float64[2] min 2 max 4: [2, 4]")
    assert run_json("services", "call", "trainer:5555", "done", '{"return": 1.5}', "--json") == {
        "done": {"return": 1.5}
    }


def test_what_cannot_be_called(system, monkeypatch, capsys):
    with pytest.raises(UnknownRequest, match="'dona'; the server has 'done'"):
        call("trainer:5555", "dona")
    with pytest.raises(UnknownRequest, match="'jump'; the server has 'move'"):
        call("action:5556", "act", "jump", "{}")
    with pytest.raises(UnknownRequest, match="act KEY JSON"):
        call("action:5556", "move")
    with pytest.raises(RemoteError, match="KeyError"):
        call("inference:5600", "policy", "{}")
    with pytest.raises(values.BadValue, match="write one such as action:5556"):
        call("robot", "obs")
    with pytest.raises(values.BadValue, match="there is also '1'"):
        call("trainer:5555", "done", "{}", "1")
    monkeypatch.setattr(sys, "argv", ["agentlace", "services", "call", "trainer:5555", "done", "{"])
    assert main() == 1
    assert capsys.readouterr().err.startswith("agentlace: '{' is no JSON")


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, dtype, shape",
    [
        ("[1, 2]", np.int64, (2,)),
        ("[1, 2.5]", np.float32, (2,)),
        ("[[1, 2], [3, 4.0]]", np.float32, (2, 2)),
        ("[true, false]", np.bool_, (2,)),
        ('{"$array": [1, 2], "dtype": "uint8"}', np.uint8, (2,)),
        ('{"$array": 3, "dtype": "float16"}', np.float16, ()),
    ],
)
def test_lists_of_numbers_are_arrays(text, dtype, shape):
    array = values.parse(text)
    assert (array.dtype, array.shape) == (dtype, shape)


def test_other_values_stay_what_they_are(tmp_path):
    assert values.parse('{"a": ["x", 1], "b": [], "c": null, "d": 1.5}') == {
        **{"a": ["x", 1], "b": [], "c": None, "d": 1.5}
    }
    assert values.parse('{"$bytes": "aGk="}') == b"hi"
    ragged = values.parse("[[1], [2, 3]]")
    assert [row.tolist() for row in ragged] == [[1], [2, 3]]
    (tmp_path / "value.json").write_text('{"a": 1}')
    assert values.parse(f"@{tmp_path}/value.json") == {"a": 1}


def test_json_comes_back():
    tree = {
        "image": np.zeros((2, 2), np.uint8),
        "half": np.float16(0.5),
        "raw": b"hi",
        "flag": True,
        "names": ("a", "b"),
    }
    again = values.parse(json.dumps(values.to_json(tree)))
    assert again["image"].dtype == np.uint8 and again["image"].shape == (2, 2)
    assert again["half"].dtype == np.float16 and again["half"] == 0.5
    assert (again["raw"], again["flag"], again["names"]) == (b"hi", True, ["a", "b"])


def test_an_encoded_image_is_shown_as_one():
    pytest.importorskip("cv2", reason="needs the extra 'image'")
    tree = {"wrist": encode_image(np.zeros((8, 6, 3), np.uint8), "png")}
    (line,) = values.described(tree)
    assert line.startswith("wrist: ") and "png" in line and line.endswith(" B")
    assert "png" in values.structure(tree)


@pytest.mark.parametrize("text", ["{", '{"$array": [1], "dtype": "nothing"}', '{"$bytes": "%"}'])
def test_what_is_no_value_is_said(text):
    with pytest.raises(values.BadValue, match="is no"):
        values.parse(text)
