"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from agentlace.config import BadSetting
from agentlace.errors import AgentlaceError, BrokerAuthFailed, TlsFailed

Status = Literal["ok", "info", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        status: ``ok``; ``info``, neither good nor bad; ``warn``, works and may not for long;
            ``fail``, does not work; ``skip``, could not be looked at.
        found: what is there.
        remedy: what mends it, a command where there is one; empty if there is nothing to mend.
        check: the check's name.
    """

    status: Status
    found: str
    remedy: str = ""
    check: str = ""

    def of(self, check: str) -> Finding:
        """Return it with the name of its check."""
        return replace(self, check=check)


def ok(found: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", found)


def info(found: str, remedy: str = "") -> Finding:
    """Return what is neither good nor bad."""
    return Finding("info", found, remedy)


def warn(found: str, remedy: str) -> Finding:
    """Return what works, and may not for long."""
    return Finding("warn", found, remedy)


def fail(found: str, remedy: str) -> Finding:
    """Return what does not work."""
    return Finding("fail", found, remedy)


def skip(reason: str, remedy: str = "") -> Finding:
    """Return why nothing could be looked at."""
    return Finding("skip", reason, remedy)


def of_error(error: AgentlaceError) -> Finding:
    """Return what an error says that a check could not foresee."""
    text = " ".join(str(error).split())
    if isinstance(error, BrokerAuthFailed) and error.is_forbidden:
        return skip(
            f"user {error.user!r} may not do {error.command or 'this'!r}",
            "run it as a user who may look, such as observer: AGENTLACE_USERNAME=observer "
            "AGENTLACE_PASSWORD_FILE=FILE agentlace doctor",
        )
    if isinstance(error, (TlsFailed, BadSetting)):
        found, _, remedy = text.rpartition(": ")
        return fail(found, remedy)
    return fail(text, "run it again; if it stays so, look into the broker's log")
