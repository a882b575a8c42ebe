import uuid

import pytest

pytest.importorskip("starlette", reason="the dashboard needs the extra 'web'")
pytest.importorskip("uvicorn", reason="the dashboard needs the extra 'web'")

from .support import Visitor, served


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("BROKER", "NAMESPACE", "PASSWORD", "PASSWORD_FILE"):
        monkeypatch.delenv(f"AGENTLACE_{name}", raising=False)


@pytest.fixture(scope="module")
def shared_url(embedded_broker):
    """Address of a namespace that a module's tests share."""
    return f"redis://127.0.0.1:{embedded_broker.settings.port}?ns=t{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="module")
def dashboard(shared_url):
    """A dashboard that everybody may look at, with an admin's password."""
    with served(shared_url) as server:
        yield server


@pytest.fixture
def visitor(dashboard):
    """Somebody who comes for the first time."""
    return Visitor(dashboard.url)
