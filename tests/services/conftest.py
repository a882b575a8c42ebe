import contextlib

import pytest

from .inference_support import Room


@pytest.fixture
def running():
    """An ExitStack: what is entered into it is stopped when the test ends, the latest first."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("BROKER", "NAMESPACE", "PASSWORD", "PASSWORD_FILE", "STRICT"):
        monkeypatch.delenv(f"AGENTLACE_{name}", raising=False)


@pytest.fixture
def room(running, any_broker_url):
    """An inference service over every kind of broker."""
    return Room(any_broker_url, running)
