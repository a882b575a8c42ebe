"""``agentlace doctor``: what is wrong, and what mends it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from agentlace._version import __version__
from agentlace.cli import options
from agentlace.cli.options import BrokerOption, JsonOption, NamespaceOption
from agentlace.config import BadSetting, BrokerURL
from agentlace.operating.doctor import CHECKS, Finding, Patient, examine
from agentlace.transport.secured import ROLES

NAME_WIDTH = max(len(check.name) for check in CHECKS)
SERVICE = re.compile(r"(action|inference|recorder|trainer):\d{1,5}")
COLOURS = {"ok": "green", "info": "blue", "warn": "yellow", "fail": "red", "skip": "bright_black"}


def doctor(
    role: Annotated[
        str, typer.Option(help="See that the user can do this role's job.", metavar="ROLE")
    ] = "",
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as trainer:5555: look for it also where the user may not list services; "
            "several times for several.",
            metavar="KIND:PORT",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Find out what is wrong: between here and the broker, at the broker, with the nodes.

    Looks only: nothing is changed. What cannot be looked at is skipped, and says why. The exit
    status is 1 if anything has failed. Run it as observer or admin, on the machine that has
    trouble: other roles may not see all of it.
    """
    if role and role not in ROLES:
        raise BadSetting("--role", role, f"it must be one of {', '.join(ROLES)}")
    for name in service or ():
        if not SERVICE.fullmatch(name):
            raise BadSetting("--service", name, "name its kind and port_number: trainer:5555")
    url = options.broker_url(broker, namespace)
    patient = Patient(url, role, service or ())
    if as_json:
        findings = list(examine(patient))
        typer.echo(json.dumps(_as_json(url, findings, strict), indent=2))
    else:
        findings = _shown(patient)
    if _is_bad(findings, strict):
        raise typer.Exit(1)


def _is_bad(findings: Iterable[Finding], strict: bool) -> bool:
    bad = {"fail", "warn"} if strict else {"fail"}
    return any(finding.status in bad for finding in findings)


def _as_json(url: BrokerURL, findings: list[Finding], strict: bool) -> dict[str, object]:
    return {
        "broker": str(url),
        "namespace": url.namespace,
        "version": __version__,
        "ok": not _is_bad(findings, strict),
        "findings": [asdict(finding) for finding in findings],
    }


def _shown(patient: Patient) -> list[Finding]:
    """Show each finding when it is found, and on a terminal what is being looked at."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    where = f"the broker at {patient.url}, namespace {patient.url.namespace!r}"
    console.print(f"agentlace {__version__} looks at {where}", markup=False)
    findings: list[Finding] = []
    with console.status("") as status:

        def begin(name: str) -> None:
            status.update(f"looks at {name} …")

        for group in _grouped(examine(patient, begin)):
            console.print(_line(group, _styled(console.is_terminal)))
            findings += group
    console.print(_summary(findings), markup=False)
    return findings


def _grouped(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Yield findings one by one as they come, but those together that are skipped alike."""
    skipped: list[Finding] = []
    for finding in findings:
        if skipped and finding.found != skipped[0].found:
            yield skipped
            skipped = []
        if finding.status == "skip":
            skipped.append(finding)
        else:
            yield [finding]
    if skipped:
        yield skipped


def _styled(is_terminal: bool) -> Callable[[str, str], str]:
    def styled(text: str, style: str) -> str:
        from rich.markup import escape

        text = escape(text)
        return f"[{style}]{text}[/]" if is_terminal else text

    return styled


def _line(group: list[Finding], styled: Callable[[str, str], str]) -> str:
    finding = group[0]
    status = styled(f"{finding.status:5}", COLOURS[finding.status])
    quiet = "bright_black" if finding.status == "skip" else "default"
    found = finding.found
    if len(group) > 1:
        found += f" ({', '.join(other.check for other in group)})"
    name = finding.check if len(group) == 1 else f"{len(group)} checks"
    line = f"{status} {name:{NAME_WIDTH}}  {styled(found, quiet)}"
    if finding.remedy:
        line += f"\n{'':{NAME_WIDTH + 6}}  {styled(f'-> {finding.remedy}', 'bold')}"
    return line


def _summary(findings: list[Finding]) -> str:
    counted = Counter(finding.status for finding in findings)
    if not counted["fail"] and not counted["warn"]:
        hidden = sum(f.status == "skip" and bool(f.remedy) for f in findings)
        return f"nothing is wrong{f', but {hidden} checks could not be made' if hidden else ''}"
    return f"{counted['fail']} failed, {counted['warn']} to be warned of"
