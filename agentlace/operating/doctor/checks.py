"""All checks in order, and how they are run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.operating.doctor import admission, reach, rights, servers, streams, system
from agentlace.operating.doctor.extras import extras
from agentlace.operating.doctor.findings import Finding, of_error, skip
from agentlace.operating.doctor.patient import Patient


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: for people.
        look: yields what it finds; may raise errors of ours.
        needs: the check without whose success there is nothing to look at.
    """

    name: str
    look: Callable[[Patient], Iterator[Finding]]
    needs: str = ""


CHECKS = (
    Check("address", reach.address),
    Check("port", reach.port, "address"),
    Check("TLS", admission.encryption, "port"),
    Check("protocol", admission.protocol, "TLS"),
    Check("password", admission.password, "protocol"),
    Check("rights", rights.rights, "password"),
    Check("writes", rights.writes, "password"),
    Check("version", servers.version, "password"),
    Check("memory", servers.memory, "password"),
    Check("pub/sub buffers", servers.buffers, "password"),
    Check("persistence", servers.persistence, "password"),
    Check("clock", servers.clock, "password"),
    Check("round trip", servers.round_trip, "password"),
    Check("peers", system.peers, "password"),
    Check("configs", system.configs, "password"),
    Check("streams", streams.streams, "password"),
    Check("consumers", streams.consumers, "password"),
    Check("versions", system.versions, "password"),
    Check("extras", extras),
)


def examine(
    patient: Patient, on_check: Callable[[str], object] = lambda name: None
) -> Iterator[Finding]:
    """Yield what each check finds, as it finds it; changes nothing at the broker.

    Args:
        patient: what is looked at; its connection is closed at the end.
        on_check: called with each check's name before it begins.
    """
    causes: dict[str, str] = {}
    with contextlib.closing(patient):
        for check in CHECKS:
            cause = causes.get(check.needs)
            if cause is not None:
                causes[check.name] = cause
                yield skip(f"not looked at: first mend {cause}").of(check.name)
                continue
            on_check(check.name)
            for finding in _found(check, patient):
                if finding.status == "fail":
                    causes[check.name] = check.name
                yield finding.of(check.name)


def _found(check: Check, patient: Patient) -> Iterator[Finding]:
    try:
        yield from check.look(patient)
    except AgentlaceError as error:
        yield of_error(error)


def diagnose(url: BrokerURL, role: str = "", services: Sequence[str] = ()) -> list[Finding]:
    """Return what all checks find at an address; takes a few seconds.

    Args:
        url: the address.
        role: as in :class:`Patient`.
        services: likewise.
    """
    return list(examine(Patient(url, role, services)))
