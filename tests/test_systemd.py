"""examples/systemd: units that systemd takes, with commands that there are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
HARDENING = (
    ("NoNewPrivileges", "true"),
    ("CapabilityBoundingSet", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "true"),
    ("PrivateTmp", "true"),
    ("RestrictNamespaces", "true"),
)
VENV = "/opt/agentlace/bin/"


def settings(unit):
    """Return the lines of a unit as (name, value)."""
    return re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE)


def test_there_is_one_for_each_long_running_part():
    assert [unit.stem for unit in UNITS] == [
        "agentlace-broker",
        "agentlace-recorder",
        "agentlace-robot",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_it(unit, tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    text = unit.read_text().replace(VENV, "/bin/").replace("/bin/agentlace", "/bin/true")
    text = text.replace("/bin/python", "/bin/true")  # it looks whether the program is there
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_runs_as_nobody_in_particular_and_is_shut_in(unit):
    found = settings(unit)
    assert ("User", "agentlace") in found
    assert set(HARDENING) <= set(found)
    names = [name for name, _ in found]
    assert "Restart" in names and "TimeoutStopSec" in names
    assert not [value for _, value in found if "password=" in value.lower()], "it is in a file"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_its_command_is_there(unit):
    (command,) = [value for name, value in settings(unit) if name == "ExecStart"]
    program, *arguments = command.removeprefix(VENV).split()
    if program == "python":
        assert (ROOT / "examples" / arguments[0]).exists()
        return
    assert program == "agentlace"
    words = [word for word in arguments if not word.startswith("--")]
    command = words[:1] if words[0] == "broker" else words[:2]
    done = subprocess.run(
        [sys.executable, "-m", "agentlace", *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for option in (word for word in arguments if word.startswith("--")):
        assert option in done.stdout
