"""``agentlace rlds replay`` as a real process, into a real trainer."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from agentlace import TrainerConfig, TrainerServer
from agentlace.cli import main
from agentlace.data import ReplayBuffer
from agentlace.rlds.episode import episode_from_transitions
from agentlace.rlds.writer import DatasetWriter
from tests.cli.programs import COMMAND, OnTerminal, Piped

CONFIG = TrainerConfig(5603, 5604, request_types=["stats"])
LENGTHS = (4, 1, 6)
DEADLINE_S = 60.0


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


@pytest.fixture
def dataset(tmp_path):
    with DatasetWriter(tmp_path, "cube") as writer:
        for e, n in enumerate(LENGTHS):
            rows = [
                {
                    "observations": {"x": np.float32([e, t])},
                    "next_observations": {"x": np.float32([e, t + 1])},
                    "actions": np.float32([t]),
                }
                for t in range(n)
            ]
            writer.append(episode_from_transitions(rows, "truncated"))
        writer.commit()
        return writer.directory


@pytest.fixture
def store(broker_environment):
    with TrainerServer(CONFIG) as server:
        server.register_data_store("online", ReplayBuffer(100_000))
        server.start(threaded=True)
        yield server.data_store("online")


def start(directory, *arguments):
    command = [sys.executable, "-m", "agentlace", "rlds", "replay", directory, "--port", "5603"]
    return subprocess.Popen(
        [*map(str, [*command, *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def replay(monkeypatch, capsys):
    """Run the command in this process; return its exit code, and what it says to whom."""

    def run(*arguments):
        command = ["agentlace", "rlds", "replay", *map(str, arguments), "--port", "5603"]
        monkeypatch.setattr(sys, "argv", command)
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_dataset_arrives_once_and_in_order(dataset, store, replay):
    code, said, _ = replay(dataset, "--store", "online", "--rate", "200")
    assert code == 0
    assert "3 episodes, 11 transitions in" in said and "late for 200 per second" in said
    assert "the trainer's store 'online' has all of them" in said
    rows = store.get_latest_data(-1)
    wanted = [[e, t] for e, n in enumerate(LENGTHS) for t in range(n)]
    assert [row["observations"]["x"].tolist() for row in rows] == wanted


def test_so_many_episodes_and_no_more(dataset, store, replay):
    assert replay(dataset, "--store", "online", "--loop", "--episodes", "5")[0] == 0
    assert store.inserted == sum(LENGTHS) + sum(LENGTHS[:2])


def test_what_is_asked_wrongly(dataset, store, replay, tmp_path):
    for arguments, expected, answer in (
        ([dataset, "--store", "offline"], 1, "no store 'offline', but ['online']"),
        ([tmp_path, "--store", "online"], 1, "no dataset in"),
        ([dataset, "--store", "online", "--rate", "0"], 2, "positive"),
    ):
        code, _, said = replay(*arguments)
        assert code == expected and answer in said
    assert store.inserted == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_loops_until_it_is_stopped(dataset, store, how):
    process = start(dataset, "--store", "online", "--loop", "--rate", "100")
    wait_until(lambda: process.poll() is not None or store.inserted > sum(LENGTHS))
    process.send_signal(how)
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert f"{store.inserted} transitions" in said and "has all of them" in said


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (Piped, r"replaying \S+: \d+ episodes, "),
        (OnTerminal, r"replaying .*1\.0\.0 .*━.*\d+/\?.* episodes"),
    ],
)
def test_it_says_how_far_it_is(dataset, store, kind, pattern):
    arguments = [str(dataset), "--store", "online", "--loop", "--rate", "100", "--port", "5603"]
    with kind(COMMAND, "rlds", "replay", *arguments) as program:
        program.until(pattern)
        program.process.send_signal(signal.SIGINT)
        said = program.end()
    assert f"{store.inserted} transitions" in said


def test_it_waits_for_the_trainer_only_if_asked_to(dataset, broker_environment, replay):
    code, _, said = replay(dataset, "--store", "online")
    assert code == 1 and "no server 'trainer:5603' is running" in said
    process = start(dataset, "--store", "online", "--wait")
    try:
        with TrainerServer(CONFIG) as server:
            server.register_data_store("online", store := ReplayBuffer(100))
            server.start(threaded=True)
            said, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0 and len(store) == sum(LENGTHS), said
    finally:
        process.kill()
