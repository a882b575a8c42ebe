"""What a forked child may do with what its parent has made, and that the parent notices nothing."""

import os
import signal
import threading

import pytest

from agentlace.data import QueuedDataStore, ReplayBuffer, TrajectoryBuffer
from agentlace.data.jaxrl_data_store import make_default_trajectory_buffer

from .support import Program

# JAX warns of any fork once another test has imported it.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

PARENT = """
import logging, multiprocessing, os, sys
from agentlace import *
from agentlace.data import QueuedDataStore, ReplayBuffer

logging.basicConfig(level="INFO", format="%(levelname)s pid %(process)d %(name)s: %(message)s")
trained = TrainerConfig(5588, request_types=["ping"])
arm = ActionConfig(5590, ["go"], ["pose"], 5591)
trainer = TrainerServer(trained, request_callback=lambda kind, payload: payload)
trainer.register_data_store("env", QueuedDataStore(100))
robot = ActionServer(arm, lambda keys: {"pose": 1}, lambda key, payload: payload)
policies = InferenceServer(5600)
policies.register_interface("policy", lambda observation: {"actions": [[0.0]] * 8})
servers = (trainer, robot, policies)
for server in servers:
    server.start(threaded=True)
store = QueuedDataStore(100)
actor = TrainerClient("env", "localhost", trained, store)
watcher, device = ActionClient("localhost", arm), InferenceClient("localhost", 5600)
chunks = ChunkedPolicyClient(device, "policy", 8)
chunks.start({})
buffer = ReplayBuffer(100)
for _ in range(20):
    buffer.insert({"observations": [1.0], "actions": [1.0], "rewards": 1.0})
batches = buffer.get_iterator({"batch_size": 4})
next(batches)
clients = (chunks, actor, watcher, device)


def say(name, call):
    try:
        print("==", name, call(), flush=True)
    except AgentlaceError as error:
        print("==", name, "raises", type(error).__name__, error, flush=True)


def soft(client, call):
    return lambda: (call(), type(client.last_error).__name__)


def be_child():
    store.insert("of the child")
    say("update", soft(actor, actor.update))
    say("request", soft(actor, lambda: actor.request("ping", {})))
    say("obs", soft(watcher, watcher.obs))
    say("act", soft(watcher, lambda: watcher.act("go", {})))
    say("latest", soft(watcher, watcher.latest_obs))
    say("call", soft(device, lambda: device.call("policy", {})))
    say("step", lambda: chunks.step({}))
    say("next", lambda: next(batches))
    say("publish", lambda: trainer.publish_network({"w": 1.0}))
    say("broadcast", lambda: robot.publish_obs({"pose": 1}))
    say("start", lambda: policies.start(threaded=True))
    say("receive", lambda: actor.recv_network_callback(print))
    say("sample", lambda: buffer.sample(4)["rewards"].sum())
    with InferenceClient("localhost", 5600) as mine:
        say("mine", lambda: mine.call("policy", {})["actions"][0])
    for node in (batches,):
        node.close()
    for node in (*clients, *servers):
        node.stop()
    print("child done", flush=True)


HOW
for client in clients:
    assert client.last_error is None
for i in range(3):
    store.insert(i)
    assert actor.update_datastore("env", -1, confirm_update=True)
assert actor.request("ping", {"n": 1}) == {"n": 1}
assert watcher.obs() == {"pose": 1}
assert watcher.act("go", {"n": 2}) == {"n": 2}
assert device.call("policy", {})["actions"][0] == [0.0]
assert chunks.step({}) == [0.0]
assert trainer.publish_network({"w": 1.0}) == 1
next(batches)
print("parent done", list(trainer.data_store("env").get_latest_data(-1)), flush=True)
"""
HOW = {
    "os.fork": """
child = os.fork()
if child == 0:
    be_child()
    sys.exit(7)  # with what is registered for the end of the program
print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""",
    "multiprocessing": """
process = multiprocessing.get_context("fork").Process(target=be_child)
process.start()
process.join()
print("child ended with", process.exitcode + 7, flush=True)
""",
}
SOFT = {"update": False, "request": None, "obs": None, "act": None, "latest": None, "call": None}


@pytest.mark.parametrize("how", HOW)
def test_nodes_are_their_makers(how, broker_url):
    with Program(PARENT.replace("HOW", HOW[how]), broker=broker_url) as program:
        assert program.line("child ended with") == "child ended with 7"
        for name, value in SOFT.items():
            assert program.line(f"== {name} ") == f"== {name} ({value}, 'Closed')"
        for name in ("step", "next", "publish", "start", "receive"):
            said = program.line(f"== {name} raises")
            assert "Closed" in said and "was made before a fork" in said
            assert "make it in the child process" in said and "spawn" in said
        assert program.line("== broadcast ") == "== broadcast False"
        assert program.line("== sample ") == "== sample 4.0"
        assert program.line("== mine ") == "== mine [0.0]"
        assert program.line("child done")
        assert program.line("parent done") == "parent done [0, 1, 2]"
        assert program.wait() == 0
    parent = f" pid {program.process.pid} "
    lost = [line for line in program.lines if parent in line and "waits for the broker" in line]
    assert not lost, "the child has ended its parent's connections"


def space(gym, n):
    return gym.spaces.Box(-1, 1, (n,))


def make_trajectories():
    gym = pytest.importorskip("gymnasium", reason="needs the extra 'gym'")
    return make_default_trajectory_buffer(space(gym, 2), space(gym, 1), 100)


STORES = {
    "queue": lambda: QueuedDataStore(100),
    "replay": lambda: ReplayBuffer(100),
    "trajectories": make_trajectories,
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_may_be_used_in_a_child_whoever_held_its_locks(kind):
    """Without that, one insert of another thread at the wrong moment would block it for ever."""
    store = STORES[kind]()
    row = {"observations": [0.0, 1.0], "next_observations": [1.0, 1.0], "actions": [0.5]}
    row |= {"rewards": 1.0, "masks": 1.0, "dones": False}
    for _ in range(5):
        store.insert(dict(row))
    locks = {id(lock): lock for lock in vars(store).values() if hasattr(lock, "_at_fork_reinit")}
    assert locks
    if kind == "replay":  # numpy's own, of which another thread may be drawing
        locks[0] = store._rng.bit_generator.lock
    held, go_on = threading.Event(), threading.Event()

    def hold():
        for lock in locks.values():
            lock.acquire()
        held.set()
        go_on.wait(60)
        for lock in locks.values():
            lock.release()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            store.insert(dict(row))
            assert kind != "replay" or len(store.sample(2)["rewards"]) == 2
            os._exit(0 if len(store) == 6 or kind == "trajectories" else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    holder.join()
    assert status == 0, "blocked" if status == -signal.SIGALRM else status
    store.insert(dict(row))
    assert kind == "trajectories" or len(store) == 6
    assert isinstance(store, TrajectoryBuffer) == (kind == "trajectories")


WRITER = """
import os, sys
from agentlace import AgentlaceError, AlreadyServed
from agentlace.rlds import DatasetWriter, episode_from_transitions
import numpy as np

rows = [{"observations": np.zeros(2), "next_observations": np.ones(2), "actions": np.zeros(1),
         "rewards": 1.0}]
with DatasetWriter(sys.argv[1], "demo") as writer:
    writer.append(episode_from_transitions(rows, "terminated"))
    child = os.fork()
    if child == 0:
        try:
            writer.commit()
        except AgentlaceError as error:
            print("commit", type(error).__name__, error, flush=True)
        sys.exit(0)  # leaves the block
    os.waitpid(child, 0)
    try:
        DatasetWriter(sys.argv[1], "demo")
    except AlreadyServed:
        print("still locked", flush=True)
    print("committed", writer.commit().episodes, flush=True)
"""


def test_a_child_leaves_its_parents_dataset_alone(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra 'rlds'")
    with Program(WRITER, tmp_path) as program:
        said = program.line("commit ")
        assert "Closed" in said and "was made before a fork" in said
        assert program.line("still locked")
        assert program.line("committed") == "committed 1"
        assert program.wait() == 0
    assert not [line for line in program.lines if "dropped" in line]


MEMORY = """
import os
from agentlace import AgentlaceError, InferenceClient, InferenceServer

server = InferenceServer(5600, broker="memory://here")
server.register_interface("double", lambda x: 2 * x)
server.start(threaded=True)
if os.fork() == 0:
    with InferenceClient("", 5600, timeout_ms=200, broker="memory://here") as client:
        print("child", client.call("double", 1), client.last_error, flush=True)
    os._exit(0)
os.wait()
with InferenceClient("", 5600, broker="memory://here") as client:
    print("parent", client.call("double", 1), flush=True)
"""


def test_a_broker_inside_the_process_is_not_there_in_a_child():
    pytest.importorskip("fakeredis", reason="memory:// needs the extra 'memory'")
    with Program(MEMORY) as program:
        assert "no server 'inference:5600' is running" in program.line("child")
        assert program.line("parent") == "parent 2"
        assert program.wait() == 0
