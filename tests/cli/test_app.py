"""The frame of the command line: errors, exit statuses, help, completion."""

import os
import signal
import subprocess
import sys

import pytest

from agentlace.cli import app as app_module
from agentlace.cli import main
from agentlace.errors import AgentlaceError
from tests.ports import free_port
from tests.services.support import ROOT, Program

COMMANDS = ("bench", "broker", "consumers", "demos", "doctor", "rlds", "version")


def run(*arguments, **environment):
    """Run the command in a process of its own; returns status, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "agentlace", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def failing(monkeypatch):
    """Return a function that lets ``agentlace version`` raise something."""

    def failing(error):
        def fail():
            raise error

        command = next(c for c in app_module.app.registered_commands if c.name == "version")
        monkeypatch.setattr(command, "callback", fail)

    return failing


def told(capsys, *arguments):
    status = main(["version", *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


def test_an_error_of_ours_is_one_line(failing, capsys):
    failing(AgentlaceError("the store is\n  full: read it"))
    assert told(capsys) == (1, "agentlace: the store is full: read it\n")


def test_an_error_of_the_system_is_one_line(failing, capsys):
    failing(PermissionError(13, "Permission denied", "/data"))
    assert told(capsys) == (1, "agentlace: [Errno 13] Permission denied: '/data'\n")


def test_an_error_that_nobody_foresaw_has_a_hint(failing, capsys):
    failing(ZeroDivisionError("by zero"))
    status, text = told(capsys)
    assert status == 1
    assert text == (
        "agentlace: unforeseen ZeroDivisionError: by zero\n"
        "hint: run it again with --debug to see where\n"
    )


def test_a_broker_that_is_not_there_has_a_hint(capsys):
    assert main(["consumers", "--broker", f"redis://127.0.0.1:{free_port()}"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("agentlace: no broker at") and "agentlace doctor" in hint


@pytest.mark.parametrize("arguments", [("--debug",), ()])
def test_a_traceback_on_demand(failing, capsys, monkeypatch, arguments):
    if not arguments:
        monkeypatch.setenv("AGENTLACE_DEBUG", "1")
    failing(AgentlaceError("no"))
    status, text = told(capsys, *arguments)
    assert status == 1
    assert "Traceback" in text and text.rstrip().endswith("AgentlaceError: no")
    assert main(["--debug", "version"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("consumers", "--broker"), "--broker"),
        (("bench", "--seconds", "many"), "--seconds"),
        (("doctor", "--nonsense"), "--nonsense"),
        (("consumers", "forget"), "NAME"),
    ],
)
def test_a_wrong_command_line(capsys, arguments, words):
    assert main(list(arguments)) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("agentlace: ") and words in error
    assert hint.startswith("hint: agentlace") and hint.endswith("--help")


def test_an_interruption_is_quiet(broker_url):
    source = (
        "import sys, signal, threading; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import agentlace.cli.app as a; from agentlace.cli import main\n"
        "def wait():\n    print('waits', flush=True); threading.Event().wait()\n"
        "next(c for c in a.app.registered_commands if c.name == 'version').callback = wait\n"
        "sys.exit(main(['version']))"
    )
    with Program(source) as program:
        program.line("waits")
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 130
        assert program.lines == ["waits"]


@pytest.mark.parametrize("arguments", [("version",), ("--help",)])
def test_a_reader_that_is_gone_is_no_error(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "agentlace", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 1


def test_help_names_commands_options_and_statuses(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (*COMMANDS, "--debug", "AGENTLACE_DEBUG", "--install-completion", "130"):
        assert word in text, word
    for command in ("bench", "consumers", "doctor", "rlds export", "rlds replay"):
        assert main([*command.split(), "--help"]) == 0
        text = capsys.readouterr().out
        for word in ("--broker", "--namespace", "AGENTLACE_BROKER", "AGENTLACE_NAMESPACE"):
            assert word in text, (command, word)


def test_without_a_command_there_is_help():
    status, text, errors = run()
    assert status in (0, 2) and "doctor" in text + errors and "Traceback" not in errors


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    # Told, as this process has no shell that could be detected.
    undetected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    status, script, _ = run("--show-completion", shell, **undetected)
    assert status == 0 and "_AGENTLACE_COMPLETE" in script and f"complete_{shell}" in script


def test_completion_of_commands():
    words = {"COMP_WORDS": "agentlace do", "COMP_CWORD": "1"}
    status, text, _ = run(_AGENTLACE_COMPLETE="complete_bash", **words)
    assert status == 0 and text.split() == ["doctor"]
    words = {"COMP_WORDS": "agentlace doctor --na", "COMP_CWORD": "2"}
    status, text, _ = run(_AGENTLACE_COMPLETE="complete_bash", **words)
    assert status == 0 and text.split() == ["--namespace"]
