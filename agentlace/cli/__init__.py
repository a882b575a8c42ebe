"""The ``agentlace`` command.

::

    app.py        the commands by name
    options.py    options that several commands have
    __init__.py   how errors are told, and the exit status
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from agentlace.errors import AgentlaceError, BrokerAuthFailed, BrokerUnreachable, MissingExtra

FAILED = 1
"""What was asked for failed."""
MISUSED = 2
"""The command line was wrong; nothing was done."""
INTERRUPTED = 130
"""Ended by Ctrl-C, as shells have it."""

_DEBUG = "--debug"
_SEE_TRACEBACK = "run it again with --debug to see where"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    An error is one line, and one with a hint where more can be said; a traceback is shown only
    with ``--debug`` (at any place) or AGENTLACE_DEBUG=1.

    Args:
        arguments: of the command line, without the program's name; those of this process if None.
    """
    words, is_debugging = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        _forget_output()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if type(error).__name__ == "Abort":  # typer's, for a Ctrl-C
            return INTERRUPTED
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{error}\n")
            return MISUSED
        if is_debugging:
            traceback.print_exc()
        else:
            sys.stderr.write(_told(error))
        return int(getattr(error, "exit_code", FAILED))


def _run(words: Sequence[str]) -> int:
    try:
        from agentlace.cli.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("typer", "rich", "click"):
            raise MissingExtra(error.name or "typer", "cli") from error
        raise
    status = app(list(words), prog_name="agentlace", standalone_mode=False)
    return status if isinstance(status, int) else 0


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without ``--debug``, which may stand anywhere, and whether it did."""
    end = list(words).index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != _DEBUG]
    is_told = len(kept) < end or os.environ.get("AGENTLACE_DEBUG", "") not in ("", "0")
    return [*kept, *words[end:]], is_told


def _told(error: Exception) -> str:
    """Return an error as its line, with a second one where there is a hint."""
    text, hint = str(error), ""
    if hasattr(error, "format_message"):  # typer's, whichever library it is built on
        context = getattr(error, "ctx", None)
        text, hint = error.format_message(), f"{_path(context)} --help"
    elif isinstance(error, (BrokerUnreachable, BrokerAuthFailed)):
        hint = "agentlace doctor looks for the reason, step by step"
    elif not isinstance(error, (AgentlaceError, OSError)):
        text, hint = f"unforeseen {type(error).__name__}: {text}", _SEE_TRACEBACK
    lines = [f"agentlace: {_one_line(text)}", *([f"hint: {hint}"] if hint else [])]
    return "\n".join(lines) + "\n"


def _path(context: Any) -> str:
    return "agentlace" if context is None else str(context.command_path)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _forget_output() -> None:
    """Keep the interpreter from complaining, at its end, of what it cannot write any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
