"""What takes longer than a moment says how far it is."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from agentlace import progress
from agentlace.cli.progress import shown
from agentlace.progress import Logged, counted


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("agentlace.cli.progress.FIRST_S", 0.0)
    monkeypatch.setattr("agentlace.cli.progress.EVERY_S", 0.0)
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


def test_plain_lines_without_a_terminal(capsys):
    with shown("verifying cube", 3) as advance:
        assert list(counted("abc", advance)) == ["a", "b", "c"]
    output = capsys.readouterr()
    assert not output.out
    assert output.err.splitlines() == [f"verifying cube: {n} of 3 episodes" for n in (1, 2, 3)]


def test_without_a_total(capsys):
    with shown("converting", unit="files") as advance:
        advance(7)
    assert capsys.readouterr().err == "converting: 7 files\n"


def test_what_is_quick_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr("agentlace.cli.progress.FIRST_S", 60.0)
    with shown("verifying", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


PROGRAM = """
from agentlace.cli import progress
progress.FIRST_S = 0.0
with progress.shown("verifying [cube]", 4) as advance:
    for _ in range(4):
        advance(1)
print("done")
"""


def test_a_bar_on_a_terminal():
    master, slave = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            check=True,
        )
        drawn = os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert result.stdout == b"done\n"
    assert "verifying [cube]" in drawn and "4/4" in drawn


def test_the_log_tells_of_the_library(caplog):
    caplog.set_level(logging.INFO)
    done = Logged(logging.getLogger("agentlace.test"), "reading runs/1", 4e6, "MB", 1e6)
    done(1e6)
    done(3e6)
    assert caplog.messages == [
        "reading runs/1: 1 of 4 MB, 25 %",
        "reading runs/1: 4 of 4 MB, 100 %",
    ]
