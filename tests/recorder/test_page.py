"""What docs/recording.md shows runs, and gives what it says."""

import re
from pathlib import Path

from agentlace import TrainerConfig, TrainerServer
from agentlace.data import QueuedDataStore
from agentlace.recorder import Recorder
from tests.services.support import Program

from .conftest import read

PAGE = Path(__file__).parents[2] / "docs" / "recording.md"


def test_marking(running, broker_url, tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    server = running(TrainerServer(TrainerConfig(), broker=broker_url))
    server.register_data_store("env", QueuedDataStore(1000))
    server.start(threaded=True)
    with Recorder(["env"], tmp_path, "cube", broker=broker_url) as recorder:
        program = running(Program(source, broker=broker_url))
        assert program.wait(60) == 0, "\n".join(program.lines)
        recorder.run(once=True)
    found = [(len(e.steps), e.ending, e.metadata["success"]) for e in read(recorder)]
    assert found == [(11, "truncated", False), (11, "terminated", True), (11, "terminated", True)]
    assert [int(e.metadata["number"]) for e in read(recorder)] == [0, 2, 3]
    assert recorder.status().is_complete  # nothing of the discarded one was ever sent


def test_options_that_it_names_exist():
    from agentlace.cli import rlds_export

    source = Path(rlds_export.__file__).read_text()
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE.read_text())):
        if option not in ("--profile",):
            assert option[2:].replace("-", "_") in source, option
