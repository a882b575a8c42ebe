import contextlib

import pytest


@pytest.fixture
def running():
    """An ExitStack: what is entered into it is stopped when the test ends, the latest first."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("BROKER", "NAMESPACE", "PASSWORD", "PASSWORD_FILE", "STRICT"):
        monkeypatch.delenv(f"AGENTLACE_{name}", raising=False)
