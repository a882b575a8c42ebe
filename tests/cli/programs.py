"""Programs that say how far they are, on a pipe or on a terminal."""

import os
import pty
import re
import subprocess
import sys

SOON = "from agentlace import progress; progress.FIRST_S = progress.EVERY_S = 0.05\n"
"""At the beginning of a program: nothing has to take long to be mentioned."""
COMMAND = f"{SOON}import sys; from agentlace.cli import main; sys.exit(main())"
"""The program agentlace."""


class Piped:
    """A program whose standard error is a pipe; killed at the end of its context."""

    def __init__(self, *arguments):
        self._read, write = self._opened()
        self.process = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=write,
            text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(write)
        self.said = ""

    def _opened(self):
        return os.pipe()

    def until(self, pattern):
        """Read its standard error until it has said something."""
        while not re.search(pattern, self.said):
            assert self._hear(), f"it has not said {pattern}, but: {self.said}"

    def _hear(self):
        try:
            more = os.read(self._read, 1 << 16)
        except OSError:  # a terminal whose other end is closed
            more = b""
        self.said += more.decode()
        return more

    def tell(self, text):
        """Write to its standard input."""
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, text=""):
        """Let it go on to its end; returns its standard output."""
        self.tell(text)
        while self._hear():
            pass
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.said
        return output

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        os.close(self._read)


class OnTerminal(Piped):
    """A program whose standard error is a terminal."""

    def _opened(self):
        return pty.openpty()
