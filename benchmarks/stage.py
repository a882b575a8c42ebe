"""Where a row's processes live: whatever is started on a stage ends when the stage is left."""

import contextlib
import os
import shutil
import sys
import tempfile

from agentlace.transport.embedded import EmbeddedBroker, Settings
from benchmarks.envs import python_of
from benchmarks.processes import Deadline, Program, free_port


class Stage(contextlib.ExitStack):
    """One row's processes, with one deadline for all of them.

    Attributes:
        quick: whether this is only to see that everything runs.
        install: whether missing environments may be made.
    """

    def __init__(self, bound_s, quick=False, install=False):
        super().__init__()
        self.quick = quick
        self.install = install
        self.deadline = Deadline(bound_s)
        self._broker = None

    def program(self, module, role, environment=None, **args):
        """Start a worker and return it when it has announced itself.

        Args:
            module: below ``benchmarks.peers``.
            role: which of the module's programs.
            environment: name of the peer's environment; None for ours.
            args: of the program.
        """
        python = python_of(environment, self.install) if environment else sys.executable
        variables = {"AGENTLACE_BROKER": self.broker_url} if self._broker else {}
        module = f"benchmarks.peers.{module}"
        program = Program(module, role, args, self.deadline, python, variables)
        self.callback(program.stop)
        return program.ready()

    def broker(self, directory=None):
        """Start the row's broker, with default settings; the same one when called again."""
        if self._broker is None:
            settings = Settings(port=free_port(), directory=directory)
            self._broker = self.enter_context(EmbeddedBroker(settings))
        return self._broker

    @property
    def broker_url(self):
        return f"redis://127.0.0.1:{self._broker.settings.port}"

    def folder(self):
        """Return a new folder that goes with the stage."""
        path = tempfile.mkdtemp(prefix="agentlace-bench-")
        self.callback(shutil.rmtree, path, ignore_errors=True)
        return path


def without_our_environment():
    """Drop settings of the user's that would send our clients to another broker."""
    for name in [name for name in os.environ if name.startswith("AGENTLACE_")]:
        del os.environ[name]
