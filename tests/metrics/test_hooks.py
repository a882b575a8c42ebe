"""What a program reports arrives in TensorBoard and W&B, and ends no training run."""

import logging
import math
import threading

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from agentlace import TrainerConfig, TrainerServer
from agentlace.data import ReplayBuffer
from agentlace.metrics import TensorBoard, Wandb
from agentlace.rlds.tfrecord import read_records
from agentlace.telemetry import SAMPLES_MAX, Sample, Telemetry


def read_back(folder):
    """Return (name, step, value) of all scalars in the folder's files of events, in order."""
    events = [
        event_pb2.Event.FromString(record)
        for path in sorted(folder.iterdir())
        for record in read_records(path)
    ]
    return [(v.tag, event.step, v.simple_value) for event in events for v in event.summary.value]


def test_tensorboard(tmp_path):
    telemetry = Telemetry("trainer")
    with TensorBoard(tmp_path) as hook:
        telemetry.on_report(hook)
        telemetry.report({"loss": np.float32(0.5), "return": 3}, step=10)
        telemetry.report({"loss": 0.25}, step=20)
        telemetry.report({"loss": 0.125})
    assert read_back(tmp_path) == [
        ("loss", 10, 0.5),
        ("return", 10, 3.0),
        ("loss", 20, 0.25),
        ("loss", 21, 0.125),
    ]


def test_numbers_that_are_not_finite_are_seen(tmp_path):
    telemetry = Telemetry("trainer")
    with TensorBoard(tmp_path) as hook:
        telemetry.on_report(hook)
        telemetry.report({"loss": math.nan, "norm": math.inf}, step=1)
    (_, _, loss), (_, _, norm) = read_back(tmp_path)
    assert math.isnan(loss) and norm == math.inf
    assert telemetry.told()["samples"] == []


def test_all_is_written_when_the_node_stops(tmp_path, broker_url):
    server = TrainerServer(TrainerConfig(), broker=broker_url)
    server.register_data_store("env", ReplayBuffer(10))
    server.telemetry.on_report(TensorBoard(tmp_path), own_every_s=60)
    server.start(threaded=True)
    server.telemetry.report({"loss": 0.5}, step=1)
    server.telemetry.report({"loss": 0.25}, step=2)
    server.stop()
    found = read_back(tmp_path)
    assert [(s, v) for n, s, v in found if n == "loss"] == [(1, 0.5), (2, 0.25)]
    # The node's own numbers went with the first report only.
    assert [(s, v) for n, s, v in found if n == "agentlace/store_size/env"] == [(1, 0.0)]
    server.telemetry.report({"loss": 0.125}, step=3)
    server.telemetry.end()
    assert read_back(tmp_path)[-1] == ("loss", 3, 0.125)


def test_threads_report_at_the_same_time(tmp_path):
    telemetry = Telemetry("trainer")
    with TensorBoard(tmp_path) as hook:
        telemetry.on_report(hook)

        def work(name):
            for step in range(200):
                telemetry.report({name: step}, step)

        threads = [threading.Thread(target=work, args=(f"worker{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_back(tmp_path)
    for n in range(4):
        steps = [step for name, step, _ in found if name == f"worker{n}"]
        assert steps == list(range(200))


def test_a_hook_that_fails_ends_nothing(caplog):
    telemetry, heard = Telemetry("trainer"), []

    def full(values, step):
        raise OSError("no space left on device")

    telemetry.on_report(full)
    telemetry.on_report(lambda values, step: heard.append((values, step)))
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            telemetry.report({"loss": 1.0}, step)
    assert heard == [({"loss": 1.0}, step) for step in range(3)]
    assert len(caplog.records) == 1 and "no space left" in caplog.text


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="'loss' is a list"):
        Telemetry("trainer").report({"loss": [1.0, 2.0]})


def test_many_reported_names_leave_the_own_numbers_in():
    telemetry = Telemetry("trainer")
    telemetry.collect(lambda: [Sample("store_size", 7.0)])
    telemetry.report({f"loss {n}": 0.0 for n in range(2 * SAMPLES_MAX)})
    told = telemetry.told()["samples"]
    assert len(told) == SAMPLES_MAX and told[0] == ["store_size", {}, 7.0]


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip(
        "wandb", reason="wandb is no dependency of the tests: it brings a server of its own"
    )
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="agentlace", mode="offline", dir=tmp_path)
    telemetry = Telemetry("trainer")
    telemetry.on_report(Wandb(run))
    telemetry.report({"loss": np.float32(0.5)}, step=10)
    telemetry.report({"loss": 0.25, "return": 3.0}, step=20)
    telemetry.report({"return": 4.0})
    assert dict(run.summary) | {"loss": 0.25, "return": 4.0} == dict(run.summary)
    run.finish()
    telemetry.report({"loss": 0.0}, step=30)  # W&B refuses, which is logged
    assert list(tmp_path.rglob("run-*.wandb"))


def test_what_is_no_run_is_refused():
    with pytest.raises(TypeError, match=r"wandb\.init"):
        Wandb("my-project")
