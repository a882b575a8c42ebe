"""The log: who writes it, what it carries for programs that read it, and how often it repeats."""

import ast
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import agentlace
from agentlace import TrainerClient, TrainerConfig, TrainerServer, logs
from agentlace.action import ActionConfig, ActionServer
from agentlace.data import QueuedDataStore
from agentlace.logs import MAX_CAUSES, Refrain, about
from agentlace.transport.keys import ServiceKeys

PACKAGE = Path(agentlace.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TALKS = ("cli/", "internal/utils.py", "__main__.py")
"""These are programs, or print for them."""
NODES = ("service/client.py", "service/server.py", "trainer/client.py")
"""These also write to, or set the level of, the logger of their service."""
NAMED = ("action", "inference/", "recorder/", "robot/", "service/", "trainer/", "transport/")
"""These know a service, a store or a peer."""
WRITES = ("warning", "error", "exception", "critical")


def calls(path):
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", FILES)
def test_a_module_has_one_logger_of_its_own_name(name):
    found = [ast.unparse(call) for call in calls(FILES[name]) if "getLogger" in ast.unparse(call)]
    own = [text for text in found if text == "logging.getLogger(__name__)"]
    others = [text for text in found if text not in own and ".setLevel" not in text]
    assert len(own) <= 1
    assert not others or name in NODES, others
    writes = any(
        isinstance(node, ast.Attribute) and ast.unparse(node.value) == "log"
        for node in ast.walk(ast.parse(FILES[name].read_text()))
    )
    passes = any("log" in map(ast.unparse, call.args) for call in calls(FILES[name]))
    uses = writes or (bool(own) and passes)
    assert uses == bool(own), "a logger that nobody uses, or none that is used"


@pytest.mark.parametrize("name", FILES)
def test_a_library_neither_prints_nor_installs_handlers(name):
    if name.startswith(TALKS):
        return
    for call in calls(FILES[name]):
        called = ast.unparse(call.func)
        assert called != "print", f"line {call.lineno}"
        assert called.rpartition(".")[2] not in ("basicConfig", "addHandler", "dictConfig")
        assert called not in ("sys.stdout.write", "warnings.warn")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(NAMED)])
def test_warnings_of_nodes_carry_fields(name):
    for call in calls(FILES[name]):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        owner = ast.unparse(call.func).rpartition(".")[0]
        if (method in WRITES and owner in ("log", "self._log")) or method == "say":
            assert "extra" in {word.arg for word in call.keywords}, f"line {call.lineno}"


def test_fields_collide_with_nothing_that_a_record_has():
    record = logging.makeLogRecord({})
    names = {line.split()[0] for line in logs.__doc__.splitlines() if line[:1].isalpha()}
    documented = names & {"namespace", "service", "store", "peer", "error", "path", "unsaid"}
    assert len(documented) == 7
    assert not [name for name in documented if hasattr(record, name)]


def test_fields_come_from_keys_and_errors():
    keys = ServiceKeys("lab", "trainer", 5588)
    assert about(keys.labels, peer=None) == {"namespace": "lab", "service": "trainer:5588"}
    found = about(keys.store("a:b").labels, peer="arm", error=KeyError("x"))
    assert found == {
        "namespace": "lab",
        "service": "trainer:5588",
        "store": "a:b",
        "peer": "arm",
        "error": "KeyError",
    }


class Lines(logging.Handler):
    """Writes records as JSON, as a program's own handler would."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self._usual = vars(logging.makeLogRecord({})).keys()

    def emit(self, record):
        fields = {name: value for name, value in vars(record).items() if name not in self._usual}
        self.lines.append(json.loads(json.dumps({"text": record.getMessage(), **fields})))


@pytest.fixture
def lines():
    handler, root = Lines(), logging.getLogger("agentlace")
    root.addHandler(handler)
    yield handler.lines
    root.removeHandler(handler)


class Picky(QueuedDataStore):
    """Takes nothing."""

    def batch_insert(self, batch_data):
        raise ValueError("not this one")

    def insert(self, data):
        raise ValueError("not this one")


def test_a_store_that_refuses_everything_says_so_once_in_a_while(broker_url, lines):
    config = TrainerConfig(5588)
    with TrainerServer(config, broker=broker_url) as server:
        server.register_data_store("env", Picky(10))
        server.start(threaded=True)
        queue = QueuedDataStore(100)
        with TrainerClient(
            "env", "", config, queue, actor_id="arm", broker=broker_url, timeout_ms=5000
        ) as client:
            for number in range(30):
                queue.insert({"n": number})
                assert client.update_datastore("env", -1, confirm_update=True)
        assert server.counters()["env"]["rejected"] == 30
    said = [line for line in lines if "rejected" in line["text"]]
    assert len(said) == 1
    assert (said[0]["service"], said[0]["store"]) == ("trainer:5588", "env")
    assert (said[0]["peer"], said[0]["error"]) == ("arm", "ValueError")


def test_a_handler_that_always_raises_says_so_once_in_a_while(broker_url, lines):
    from agentlace.action import ActionClient

    config = ActionConfig(5590, ["go", "come"], ["pose"])

    def act(key, payload):
        raise OSError("the arm is off")

    with ActionServer(config, None, act, broker=broker_url) as server:
        server.start(threaded=True)
        with ActionClient("", config, broker=broker_url, timeout_ms=5000) as client:
            for _ in range(20):
                assert client.act("go", {}) is None
            assert client.act("come", {}) is None
    said = [line for line in lines if "the handler of" in line["text"]]
    assert ["Traceback" in line["text"] for line in said] == [True, True], "one for each key"
    assert {(line["service"], line["error"]) for line in said} == {("action:5590", "OSError")}


def test_a_repetition_is_counted_and_told_with_the_next_one():
    refrain, said = Refrain(every_s=0.05), []

    def write(text, *args, extra, stacklevel):
        said.append((text % args, extra["unsaid"]))

    done = threading.Event()
    refrain.say(write, ValueError("a"), "%s", "first")
    for _ in range(3):
        refrain.say(write, ValueError("b"), "%s", "again")
        refrain.say(write, ("other", 1), "%s", "other")
    done.wait(0.06)
    refrain.say(write, ValueError("c"), "%s", "last")
    assert said[:2] == [("first", 0), ("other", 0)]
    assert said[-1] == ("last (3 times more since it was last said)", 3)
    refrain.reset()
    assert refrain.is_due(ValueError("d"))


def test_what_is_remembered_of_causes_is_bounded():
    refrain = Refrain()
    assert all(refrain.is_due(number) for number in range(10 * MAX_CAUSES))
    assert not refrain.is_due(10 * MAX_CAUSES - 1)
    assert refrain.is_due(0), "forgotten, and said again"
    assert len(refrain._said) == MAX_CAUSES


def test_a_message_names_the_line_that_wrote_it(caplog):
    with caplog.at_level("WARNING"):
        Refrain().say(logging.getLogger("agentlace.test").warning, "cause", "text")
    assert caplog.records[0].filename == Path(__file__).name


def test_a_program_that_configures_nothing_sees_warnings_only():
    code = (
        "import logging, agentlace\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('agentlace').handlers\n"
        "logging.getLogger('agentlace.trainer').info('quiet')\n"
        "logging.getLogger('agentlace.trainer').warning('loud')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "loud\n")
