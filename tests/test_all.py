"""The programs beside this file, each run as a script: python tests/test_all.py."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ["test_action", "test_data_store", "test_inference", "test_tfds", "test_trainer"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_a_script(name, broker_environment):
    assert f"[{name}] passed" in output_of(name)


def output_of(name):
    program = Path(__file__).with_name(f"{name}.py")
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


if __name__ == "__main__":
    for each in PROGRAMS:
        print(output_of(each), end="", flush=True)
