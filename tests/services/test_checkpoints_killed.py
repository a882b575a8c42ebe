"""Trainers that are killed, while they save and otherwise: nothing is lost, nothing comes twice."""

import contextlib
import fcntl
import json
import signal

import numpy as np
import pytest

from agentlace import CheckpointPolicy, TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore, ReplayBuffer

from .support import Program, wait_until

CONFIG = TrainerConfig(5555, 5556)

NODES = """
import json, os, signal, sys, threading
import numpy as np
from agentlace import CheckpointPolicy, TrainerConfig, TrainerServer
from agentlace.data import DataStoreBase, ReplayBuffer

CONFIG = TrainerConfig(5555, 5556)


class Own(DataStoreBase):
    def __init__(self):
        super().__init__(1000)
        self.rows = []

    def insert(self, data):
        self.rows.append(int(data["n"]))

    def __len__(self):
        return len(self.rows)

    def save_to(self, folder):
        with open(os.path.join(folder, "rows.json"), "w") as file:
            json.dump(self.rows, file)

    def load_from(self, folder):
        with open(os.path.join(folder, "rows.json")) as file:
            self.rows = json.load(file)


def numbers(store):
    if isinstance(store, Own):
        return store.rows
    return [int(row["n"]) for row in store.get_latest_data(-1)]


def wait_for(total, *stores):
    pause = threading.Event()
    while any(len(store) < total for store in stores):
        pause.wait(0.002)


def tell(kind, **values):
    print(json.dumps({"kind": kind, **values}), flush=True)
"""

FORGE = (
    NODES
    + """
def die_at(step):
    \"\"\"Let SIGKILL come instead of the so manieth thing that is done to the disk.\"\"\"
    done = []

    def counted(real):
        def call(*args, **kwargs):
            done.append(real.__name__)
            if len(done) == step + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    return done


def train(folder, step, total):
    env, own = ReplayBuffer(1000), Own()
    server = TrainerServer(CONFIG, checkpoint=CheckpointPolicy(folder, every_s=None))
    server.register_data_store("env", env)
    server.register_data_store("own", own)
    extra = server.restore()
    tell("restored", env=numbers(env), own=numbers(own), extra=extra)
    server.start(threaded=True)
    wait_for(total, env, own)
    tell("has", env=numbers(env), own=numbers(own), missing=server.counters()["env"]["missing"])
    done = die_at(step)
    server.save(extra={"total": total})
    tell("saved", steps=done)
    os._exit(0)


for line in sys.stdin:  # a child for each: it need not import anything
    folder, step, total = json.loads(line)
    child = os.fork()
    if not child:
        train(folder, step, total)
    tell("ended", status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
)


class Forge(Program):
    """Makes trainers that save once and are killed at a step of it."""

    def train(self, folder, step, total):
        seen = len(self.lines)
        self.tell(json.dumps([str(folder), step, total]))
        self.line('"ended"', after=seen)
        told = [json.loads(line) for line in self.lines[seen:] if line.startswith("{")]
        assert len(told) > 2, "\n".join(self.lines[seen:])
        return {message["kind"]: message for message in told}


def test_a_kill_at_any_step_of_a_save_leaves_a_whole_checkpoint(broker_url, running, tmp_path):
    """Either the one before or the new one is restored, and the streams hold what comes after."""
    stores = {"env": QueuedDataStore(1000), "own": QueuedDataStore(1000)}
    client = running(
        TrainerClientWithout("robot", "localhost", CONFIG, data_stores=stores, broker=broker_url)
    )
    forge = running(Forge(FORGE, broker=broker_url))
    found, total, saved = set(), 0, 0
    for step in range(100):
        for _ in range(5):
            for store in stores.values():
                store.insert({"n": np.int64(total), "image": np.full((16, 16), total % 251)})
            total += 1
        wait_until(client.update)
        told = forge.train(tmp_path, step, total)
        restored = told["restored"]
        now = 0 if restored["extra"] is None else restored["extra"]["total"]
        assert restored["env"] == restored["own"] == list(range(now))
        assert now in (saved, total - 5), "neither the one before nor the new one"
        found.add(now == saved)
        saved = now
        assert told["has"]["env"] == told["has"]["own"] == list(range(total))
        assert told["has"]["missing"] == 0
        if "saved" in told:
            assert told["ended"]["status"] == 0
            break
        assert told["ended"]["status"] == -signal.SIGKILL, "\n".join(forge.lines[-30:])
    assert found == {True, False}
    assert set(told["saved"]["steps"]) == {"replace", "fsync", "unlink", "mkdir", "rmdir"}
    last = forge.train(tmp_path, 1000, total)
    assert last["restored"]["env"] == list(range(total)) and "saved" in last
    assert not list(tmp_path.rglob("*.tmp"))


class TrainerClientWithout(TrainerClient):
    """A client of a trainer that is not there yet."""

    def __init__(self, *args, **kwargs):
        with TrainerServer(CONFIG, broker=kwargs["broker"]) as server:
            for name in kwargs["data_stores"]:
                server.register_data_store(name, QueuedDataStore(1))
            server.start(threaded=True)
            super().__init__(*args, **kwargs, actor_id="robot", timeout_ms=2000)


TRAINER = (
    NODES
    + """
folder, mode = sys.argv[1:]
env = ReplayBuffer(100_000)
server = None


class Slow(Own):
    def save_to(self, folder):
        super().save_to(folder)
        if mode == "slow":
            tell("saving")
            threading.Event().wait(60)


def on_sigterm(*_):
    tell("handled", saved=os.path.exists(os.path.join(folder, "checkpoint.json")))
    sys.exit(7)


if mode == "handler":
    signal.signal(signal.SIGTERM, on_sigterm)
policy = CheckpointPolicy(folder, every_s=None, extra=lambda: {"had": len(env)})
server = TrainerServer(CONFIG, checkpoint=policy)
server.register_data_store("env", env)
server.register_data_store("own", Slow())
tell("restored", extra=server.restore(), env=numbers(env))
if mode == "blocking":
    tell("serving")
    server.start()
server.start(threaded=True)
tell("serving")
for line in sys.stdin:
    if line.strip() == "numbers":
        tell("numbers", env=numbers(env))
"""
)


class Trainer(Program):
    def __init__(self, broker, folder, mode=""):
        super().__init__(TRAINER, folder, mode, broker=broker)
        self.line('"serving"')

    def numbers(self):
        seen = len(self.lines)
        self.tell("numbers")
        return json.loads(self.line('"numbers"', after=seen))["env"]


@pytest.fixture
def actor(broker_url, running):
    """A store and a client that sends from it, of a trainer that comes later."""
    stores = {"env": QueuedDataStore(100_000), "own": QueuedDataStore(100)}
    client = TrainerClientWithout(
        "robot", "localhost", CONFIG, data_stores=stores, broker=broker_url
    )
    running(client)

    def send(first, end):
        for n in range(first, end):
            stores["env"].insert({"n": np.int64(n)})
        wait_until(client.update)

    return send


@pytest.mark.parametrize(
    ("mode", "status"), [("", -signal.SIGTERM), ("blocking", -signal.SIGTERM), ("handler", 7)]
)
def test_sigterm_saves_and_then_does_what_it_would_have_done(
    mode, status, broker_url, actor, tmp_path, running
):
    trainer = running(Trainer(broker_url, tmp_path / "c", mode))
    actor(0, 40)
    if mode != "blocking":
        wait_until(lambda: len(trainer.numbers()) == 40)
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.wait() == status
    if mode == "handler":
        assert json.loads(trainer.line('"handled"'))["saved"] is True
    actor(40, 50)
    trainer = running(Trainer(broker_url, tmp_path / "c"))
    restored = json.loads(trainer.line('"restored"'))
    if mode != "blocking":
        assert restored["env"] == list(range(40)) and restored["extra"] == {"had": 40}
    wait_until(lambda: trainer.numbers() == list(range(50)))


def test_a_second_sigterm_does_not_wait_for_the_save(broker_url, actor, tmp_path, running):
    trainer = running(Trainer(broker_url, tmp_path, "slow"))
    trainer.process.send_signal(signal.SIGTERM)
    trainer.line('"saving"')
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.wait() == -signal.SIGTERM
    trainer = running(Trainer(broker_url, tmp_path))
    assert json.loads(trainer.line('"restored"'))["extra"] is None
    actor(0, 3)
    wait_until(lambda: trainer.numbers() == [0, 1, 2])


def test_a_trainer_is_killed_again_and_again_while_its_actor_streams(
    broker_url, actor, tmp_path, running
):
    """It saves at short intervals; it is killed whenever it has got some further."""
    source = TRAINER.replace("every_s=None", "every_s=0.05")
    sent = 0
    for round in range(3):
        trainer = running(Program(source, tmp_path, "", broker=broker_url))
        trainer.line('"serving"')
        restored = json.loads(trainer.line('"restored"'))
        assert restored["env"] == list(range(len(restored["env"])))
        assert round == 0 or len(restored["env"]) > 0
        before = checkpoint_id(tmp_path)
        for _ in range(20):
            actor(sent, sent + 7)
            sent += 7
        wait_until(lambda before=before: checkpoint_id(tmp_path) != before)
        trainer.kill()
    trainer = running(Trainer(broker_url, tmp_path))
    wait_until(lambda: trainer.numbers() == list(range(sent)))


def checkpoint_id(folder):
    path = folder / "checkpoint.json"
    return json.loads(json.loads(path.read_bytes())["content"])["id"] if path.exists() else None


def test_sigterm_is_left_alone_without_a_path_and_after_stop(broker_url, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    server = TrainerServer(CONFIG, broker=broker_url)
    server.start(threaded=True)
    assert signal.getsignal(signal.SIGTERM) is before
    server.stop()
    server = TrainerServer(CONFIG, broker=broker_url, checkpoint=tmp_path)
    server.register_data_store("env", ReplayBuffer(10))
    server.start(threaded=True)
    assert signal.getsignal(signal.SIGTERM) is not before
    server.stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_saves_at_an_interval_what_the_program_returns(broker_url, running, tmp_path):
    policy = CheckpointPolicy(tmp_path, every_s=0.05, extra=lambda: {"steps": 12})
    server = running(TrainerServer(CONFIG, broker=broker_url, checkpoint=policy))
    server.register_data_store("env", ReplayBuffer(10))
    server.start(threaded=True)
    wait_until(lambda: (tmp_path / "checkpoint.previous.json").exists())
    server.stop()
    again = TrainerServer(CONFIG, broker=broker_url)
    again.register_data_store("env", ReplayBuffer(10))
    assert again.restore(tmp_path) == {"steps": 12}
    with pytest.raises(ValueError, match="every_s=0"):
        CheckpointPolicy(tmp_path, every_s=0)


@contextlib.contextmanager
def between_saves(folder):
    """Wait until no process is about to replace the manifest, and let none begin."""
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_trainer_that_was_stopped_as_it_saved_is_named(broker_url, actor, tmp_path, running):
    """Its checkpoint may yet appear: nobody goes on from the one before until it is gone."""
    source = TRAINER.replace("every_s=None", "every_s=0.2")
    source = source.replace("server = None", FREEZE)
    zombie = running(Program(source, tmp_path, "", broker=broker_url))
    zombie.line("freezing")
    stopped = running(Program(SUCCESSOR, tmp_path, "", broker=broker_url))
    stopped.line("about to save here and does not get on: end it")
    zombie.kill()
    trainer = running(Trainer(broker_url, tmp_path))
    actor(0, 10)
    wait_until(lambda: trainer.numbers() == list(range(10)))


FREEZE = """
def freeze_as_it_saves():
    real = os.replace

    def replace(source, target):
        if str(target).endswith("checkpoint.json"):
            print("freezing", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        real(source, target)

    os.replace = replace


freeze_as_it_saves()
server = None
"""
SUCCESSOR = TRAINER.replace(
    "from agentlace.data",
    "import agentlace.trainer.manifest as m; m.LOCK_TIMEOUT_S = 0.2\nfrom agentlace.data",
)


def test_a_trainer_that_slept_through_its_replacement_does_not_save(
    broker_url, actor, tmp_path, running
):
    """Its save would stand before what its successor has read, and lets go."""
    source = TRAINER.replace("every_s=None", "every_s=0.2")
    zombie = running(Program(source, tmp_path, "", broker=broker_url))
    zombie.line('"serving"')
    actor(0, 10)
    wait_until(lambda: (tmp_path / "checkpoint.previous.json").exists())
    with between_saves(tmp_path):
        zombie.freeze()
    successor = running(Trainer(broker_url, tmp_path))  # waits for the end of the lease
    before = checkpoint_id(tmp_path)
    seen = len(zombie.lines)
    zombie.thaw()
    zombie.line("the checkpoint was not saved", after=seen)
    assert checkpoint_id(tmp_path) == before
    actor(10, 20)
    successor.process.send_signal(signal.SIGTERM)
    assert successor.wait() == -signal.SIGTERM
    assert checkpoint_id(tmp_path) != before
