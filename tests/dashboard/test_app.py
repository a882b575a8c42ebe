"""What the dashboard answers, over real connections: to whom, and to whom not."""

import base64
import contextlib
import json
import re
import socket
import sys

import numpy as np
import pytest

from agentlace import ActionConfig, ActionServer, TrainerConfig, TrainerServer
from agentlace.dashboard.auth import FREE_ATTEMPTS
from agentlace.data import ReplayBuffer
from agentlace.operating import Snapshot
from tests.services.support import wait_until

from .support import ADMIN, VIEWER, Visitor, served

READ = ["/api/me", "/metrics", "/api/state", "/api/history", "/api/stream", "/api/cameras/action:1"]


@pytest.fixture
def locked(shared_url):
    """A dashboard with a password for viewers."""
    with served(shared_url, VIEWER) as server:
        yield Visitor(server.url)


@pytest.fixture
def trainer(shared_url):
    with TrainerServer(TrainerConfig(5555), broker=shared_url) as server:
        server.register_data_store("arm", ReplayBuffer(100))
        server.start(threaded=True)
        yield server


# -- who may look ----------------------------------------------------------------------------------


def test_everybody_may_look_without_a_password(visitor):
    assert visitor.get("/").status == 200
    me = visitor.get("/api/me").told
    assert me == {"role": "viewer", "has_session": False, "has_admin": True}
    state = wait_until(lambda: "nodes" in (told := visitor.get("/api/state").told) and told)
    assert state["away"] is None and state["broker"]["version"]
    assert visitor.get("/api/history", accept_encoding="identity").told["at"]


def test_nobody_may_look_without_the_password(locked):
    page = locked.get("/")
    assert (page.status, page.headers["location"]) == (303, "/login")
    assert [locked.get(path).status for path in READ] == [401] * len(READ)
    assert locked.command("trainer:5555", "pause").status == 401
    assert locked.get("/login").status == 200
    assert locked.get("/static/style.css").status == 200
    assert locked.get("/healthz").body == b"ok\n"


def test_a_viewer_logs_in_and_out(locked):
    answer = locked.log_in(VIEWER)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert VIEWER not in cookie
    assert locked.get("/").status == 200
    assert locked.get("/api/me").told["role"] == "viewer"
    assert locked.command("trainer:5555", "pause").status == 403
    out = locked.ask("POST", "/logout")
    assert out.status == 303 and "Max-Age=0" in out.headers["set-cookie"]


def test_a_wrong_password_is_told_and_costs_time(locked, caplog):
    for _ in range(FREE_ATTEMPTS):
        answer = locked.log_in("guess-1234")
        assert answer.status == 401 and b"Wrong password." in answer.body
    answer = locked.log_in(VIEWER)
    assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
    assert locked.cookie is None
    assert "guess-1234" not in caplog.text and b"guess-1234" not in answer.body


def test_programs_log_in_by_basic_authorization(locked):
    def basic(password):
        return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()

    assert locked.get("/api/state", authorization=basic(VIEWER)).status == 200
    assert locked.get("/api/me", authorization=basic(ADMIN)).told["role"] == "admin"
    for wrong in (basic("x"), "Basic %%%", "Basic", "Bearer x"):
        assert locked.get("/api/state", authorization=wrong).status == 401


# -- other sites -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[", ""]
)
def test_another_name_that_leads_here_is_not_served(visitor, host):
    for path in ("/", "/login", "/static/main.js", "/api/state"):
        assert visitor.get(path, host=host).status == 421


def test_own_names_are_served(shared_url):
    with served(shared_url, hosts=["Lab.example"]) as server:
        visitor = Visitor(server.url)
        port = visitor.netloc.rpartition(":")[2]
        names = ["127.0.0.1", "localhost", "[::1]", "192.168.7.7", socket.gethostname()]
        for host in [*names, "lab.example"]:
            assert visitor.get("/api/me", host=f"{host}:{port}").status == 200, host


def test_a_page_of_another_site_can_push_no_button(visitor, trainer):
    visitor.log_in(ADMIN)
    own = f"http://{visitor.netloc}"
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": own + "1"},
        {"sec_fetch_site": "cross-site"},
        {"origin": own, "sec_fetch_site": "same-site"},
    ):
        assert visitor.command("trainer:5555", "pause", **headers).status == 403, headers
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        assert visitor.log_in(ADMIN, **named).status == 403
        assert visitor.ask("POST", "/logout", **headers).status == 403
    # A form cannot send JSON, and nothing but JSON is taken.
    form = visitor.ask("POST", "/api/command", '{"service": "trainer:5555", "what": "pause"}')
    assert form.status == 415
    assert visitor.command("trainer:5555", "pause", origin=own).status == 200
    assert trainer._presence.info["pause"]


def test_replies_forbid_what_is_not_needed(visitor):
    for path in ("/", "/login", "/static/main.js", "/api/state", "/nothing"):
        headers = visitor.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
    assert visitor.get("/api/state").headers["cache-control"] == "no-store"


def test_nothing_is_loaded_from_elsewhere(visitor):
    for path in ("/", "/login"):
        page = visitor.get(path).body.decode()
        for found in re.findall(r'(?:src|href)="([^"#]+)', page):
            assert found.startswith("/")
            assert visitor.get(found).status in (200, 303), found
        assert "<style" not in page and "onclick" not in page
    script = visitor.get("/static/main.js")
    assert script.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_only_what_is_meant_to_be_served_is(visitor, path):
    assert visitor.get(path).status == 404


def test_large_bodies_are_refused(visitor):
    answer = visitor.ask("POST", "/login", b"password=" + b"x" * 100_000)
    assert answer.status == 413


# -- commands --------------------------------------------------------------------------------------


def test_only_an_admin_commands(visitor, trainer):
    answer = visitor.command("trainer:5555", "pause")
    assert answer.status == 403 and "only an admin" in answer.told["error"]
    assert "pause" not in trainer._presence.info
    visitor.log_in(ADMIN)
    assert visitor.command("trainer:5555", "pause").told == {"done": "all actors paused"}
    state = wait_until(lambda: _paused(visitor.get("/api/state").told))
    assert state["trainers"] == [{"service": "trainer:5555", "is_paused": True}]
    assert visitor.command("trainer:5555", "resume").told == {"done": "resumed"}


def _paused(state):
    return any(trainer["is_paused"] for trainer in state.get("trainers", [])) and state


def test_commands_that_cannot_be_done_say_why(visitor, trainer):
    visitor.log_in(ADMIN)
    for service, what, status, why in (
        ("trainer:5555", "save", 502, "CheckpointError"),
        ("trainer:1", "pause", 502, "no server 'trainer:1' is running"),
        ("trainer:5555", "explode", 400, "no command 'explode'"),
        ("action:5555", "pause", 400, "no trainer 'action:5555'"),
        ("trainer:5555:x", "pause", 400, "no trainer"),
    ):
        answer = visitor.command(service, what)
        assert answer.status == status and why in answer.told["error"]
    for body in ("", "[]", "{", '{"service": "trainer:5555"}', "\xff"):
        headers = {"content_type": "application/json"}
        assert visitor.ask("POST", "/api/command", body.encode("latin1"), **headers).status == 400


def test_without_an_admins_password_nobody_is_admin(shared_url, trainer):
    with served(shared_url, admin=None) as server:
        visitor = Visitor(server.url)
        assert visitor.get("/api/me").told["has_admin"] is False
        for password in ("", "None", "admin"):
            assert visitor.log_in(password).status == 401
        assert visitor.command("trainer:5555", "pause").status == 403


# -- streams and cameras ---------------------------------------------------------------------------


def test_the_stream_tells_every_state_once(dashboard, visitor, trainer):
    host, port = visitor.netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(f"GET /api/stream HTTP/1.1\r\nHost: {visitor.netloc}\r\n\r\n".encode())
        lines = sock.makefile("rb")
        states = []
        while len(states) < 4:
            line = lines.readline()
            if line.startswith(b"data: "):
                states.append(json.loads(line[6:]))
        lines.close()
    ticks = [state["tick"] for state in states]
    assert ticks == sorted(set(ticks))
    events = [event["id"] for state in states for event in state["events"]]
    assert events == sorted(set(events))
    assert isinstance(dashboard.feed.snapshot, Snapshot)


def test_a_stream_ends_with_the_dashboard(broker_url):
    with contextlib.ExitStack() as stack:
        with served(broker_url) as server:
            visitor = Visitor(server.url)
            host, port = visitor.netloc.split(":")
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            sock.sendall(f"GET /api/stream HTTP/1.1\r\nHost: {visitor.netloc}\r\n\r\n".encode())
            lines = stack.enter_context(sock.makefile("rb"))
            assert lines.readline().endswith(b"200 OK\r\n")
        lines.read()


@pytest.fixture
def red():
    """A camera's frame, all red."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[..., 0] = 200
    return frame


@contextlib.contextmanager
def robot_at(port, url, **codecs):
    config = ActionConfig(port, [], ["image"], port + 1, image_codecs=codecs)
    with ActionServer(config, None, None, broker=url) as robot:
        robot.start(threaded=True)
        yield robot


@pytest.mark.parametrize(
    ("port", "codecs"),
    [(5556, {}), (5558, {"image/wrist": "jpeg:90"}), (5562, {"image/wrist": "png"})],
)
def test_camera_frames(visitor, shared_url, red, port, codecs):
    cv2 = pytest.importorskip("cv2")
    path = f"/api/cameras/action:{port}"
    with robot_at(port, shared_url, **codecs) as robot:
        assert visitor.get(path).told == {"number": "", "frames": []}
        robot.publish_obs({"image": {"wrist": red}, "state": np.zeros(7, np.uint8)})
        shot = wait_until(lambda: (told := visitor.get(path).told)["frames"] and told)
        assert shot["frames"] == [{"name": "image/wrist", "height": 48, "width": 64}]
        image = visitor.get(f"{path}/0")
        assert image.headers["content-type"] == "image/jpeg"
        seen = cv2.imdecode(np.frombuffer(image.body, np.uint8), cv2.IMREAD_COLOR)
        assert seen.shape == (48, 64, 3)
        blues, greens, reds = seen.mean((0, 1))
        assert reds > 180 and max(blues, greens) < 20
        assert visitor.get(f"{path}/1").status == 404
        wait_until(lambda: visitor.get("/api/state").told.get("cameras") == [f"action:{port}"])


def test_cameras_that_are_none(visitor):
    for bad in ("trainer:5556", "action:x", "action:5556}", "action:99999999"):
        assert visitor.get(f"/api/cameras/{bad}").status == 404


def test_frames_without_opencv_say_what_to_install(visitor, shared_url, red, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with robot_at(5560, shared_url) as robot:
        robot.publish_obs({"image": red})

        def refused():
            answer = visitor.get("/api/cameras/action:5560")
            return answer if answer.status != 200 else None

        answer = wait_until(refused)
        assert answer.status == 503 and "pip install 'agentlace[image]'" in answer.told["error"]
