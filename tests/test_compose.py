"""docker-compose.yml: it is what the Compose specification allows, and its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="needs agentlace[dev]")
compose_spec = pytest.importorskip("compose_spec", reason="needs agentlace[dev]")

FILE = Path(__file__).parents[1] / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def filled(text, **variables):
    """Return a text with its variables as Compose fills them in."""
    return VARIABLE.sub(lambda match: variables.get(match[1]) or match[2], text)


@pytest.fixture
def services():
    return yaml.safe_load(filled(FILE.read_text()))["services"]


def test_it_is_what_the_specification_allows():
    text = filled(FILE.read_text())
    assert "${" not in text.replace("$$", ""), "a variable without a default"
    found = compose_spec.ComposeSpecification.model_validate(yaml.safe_load(text))
    assert set(found.services) == {"broker", "recorder"}


def test_every_setting_is_described():
    text = FILE.read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for name, _ in VARIABLE.findall(text):
        assert re.search(rf"#\s+{name}\s", head), name


def test_the_recorder_is_only_there_if_asked_for(services):
    assert "profiles" not in services["broker"]
    assert services["recorder"]["profiles"] == ["record"]


def test_the_recorder_is_a_command_that_exists(services, tmp_path):
    """It gets as far as looking for the broker."""
    command = services["recorder"]["command"]
    assert command[:2] == ["rlds", "export"]
    command = [option.replace("=/data", f"={tmp_path}") for option in command]
    done = subprocess.run(
        [sys.executable, "-m", "agentlace", *command],
        env={**os.environ, "AGENTLACE_BROKER": "redis://127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no broker at redis://127.0.0.1:1" in done.stderr
