"""The ``agentlace`` command."""

from __future__ import annotations

import sys

from agentlace.errors import AgentlaceError, MissingExtra


def main() -> int:
    """Run the command; errors are one line and an exit status, not a traceback."""
    try:
        try:
            from agentlace.cli.app import app
        except ImportError as error:
            raise MissingExtra("typer", "cli") from error
        app()
    except (AgentlaceError, OSError) as error:
        sys.stderr.write(f"agentlace: {error}\n")
        return 1
    return 0
