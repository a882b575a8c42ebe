"""Helpers of the dashboard's tests: a running dashboard, what it answers, a browser."""

import contextlib
import http.client
import json
import threading
from urllib.parse import urlencode, urlsplit

from agentlace.config import BrokerURL
from agentlace.dashboard.auth import COOKIE, Passwords
from agentlace.dashboard.serving import Settings, WebServer
from tests.services.support import wait_until

VIEWER, ADMIN = "look at me", "push the buttons"


class Answer:
    """What came back."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def told(self):
        return json.loads(self.body)


class Visitor:
    """Somebody who asks a dashboard, with a cookie once logged in."""

    def __init__(self, url):
        self.netloc = urlsplit(url).netloc
        self.cookie = None

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.netloc, timeout=20)
        with contextlib.closing(connection):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if self.cookie:
                sent["cookie"] = f"{COOKIE}={self.cookie}"
            connection.request(method, path, body, sent)
            return Answer(connection.getresponse())

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def log_in(self, password, **headers):
        """Log in; returns the answer."""
        form = urlencode({"password": password})
        answer = self.ask(
            *("POST", "/login", form),
            **{"content-type": "application/x-www-form-urlencoded", **headers},
        )
        set_cookie = answer.headers.get("set-cookie", "")
        if answer.status == 303:
            self.cookie = set_cookie.partition(";")[0].partition("=")[2]
        return answer

    def command(self, service, what, **headers):
        body = json.dumps({"service": service, "what": what})
        return self.ask("POST", "/api/command", body, content_type="application/json", **headers)


@contextlib.contextmanager
def served(broker_url, viewer=None, admin=ADMIN, hosts=()):
    """Run a dashboard in threads of this process; gives its server."""
    url = BrokerURL.parse(broker_url)
    server = WebServer(Settings(url, url, "127.0.0.1", 0, Passwords(viewer, admin), hosts))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.is_started or not thread.is_alive(), what="the dashboard")
        yield server
    finally:
        server.end()
        thread.join(20)
        assert not thread.is_alive()
