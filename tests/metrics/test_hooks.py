"""What a program reports arrives in TensorBoard and W&B."""

import numpy as np
import pytest

from agentlace.metrics import TensorBoard, Wandb
from agentlace.rlds.tfrecord import read_records
from agentlace.telemetry import Telemetry


def read_back(folder):
    """Return (name, step, value) of all scalars in the folder's one file of events."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = folder.iterdir()
    events = [event_pb2.Event.FromString(record) for record in read_records(path)]
    return {
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
    }


def test_tensorboard(tmp_path):
    telemetry = Telemetry("trainer")
    with TensorBoard(tmp_path) as hook:
        telemetry.on_report(hook)
        telemetry.report({"loss": np.float32(0.5), "return": 3}, step=10)
        telemetry.report({"loss": 0.25}, step=20)
        telemetry.report({"entropy": 1.0})
    assert read_back(tmp_path) == {
        ("loss", 10, 0.5),
        ("loss", 20, 0.25),
        ("return", 10, 3.0),
        ("entropy", 0, 1.0),
    }


class Run:
    """As W&B's, as far as it is called."""

    def __init__(self):
        self.logged = []

    def log(self, data, step=None):
        self.logged.append((data, step))


def test_wandb_gets_what_is_reported():
    telemetry, run = Telemetry("trainer"), Run()
    telemetry.on_report(Wandb(run))
    telemetry.report({"loss": 0.5}, step=10)
    telemetry.report({"loss": 0.25})
    assert run.logged == [({"loss": 0.5}, 10), ({"loss": 0.25}, None)]


def test_what_is_no_run_is_refused():
    with pytest.raises(TypeError, match=r"wandb\.init"):
        Wandb("my-project")
