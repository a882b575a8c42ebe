"""What ``agentlace tail`` shows of each thing that passes, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from agentlace.cli import values
from agentlace.codec import Chunk, Mark
from agentlace.errors import AgentlaceError
from agentlace.operating.following import Entry, Observation, Request


def _now() -> str:
    return f"{datetime.now():%H:%M:%S}"


def _policy(chunk: Chunk) -> Any:
    """Return the number of the network that the actor acted with; None if it does not say."""
    policy = chunk.meta.get("policy")
    return policy[-1] if isinstance(policy, (list, tuple)) and policy else None


def entry_text(entry: Entry, show_values: bool) -> Iterator[str]:
    """Yield the lines for an entry of a stream."""
    content, gap = entry.content, f"  {entry.missing:,} MISSING before" if entry.missing else ""
    numbers = f"{entry.first}-{entry.last}" if entry.last > entry.first else str(entry.last)
    head = f"{_now()}  {entry.actor}  {numbers}  "
    if isinstance(content, Chunk):
        policy = _policy(content)
        acted = "" if policy is None else f"  policy {policy}"
        count = f"{content.n} transition{'s' * (content.n != 1)}"
        yield f"{head}{count}  {entry.nbytes:,} B{acted}{gap}"
        for number, row in enumerate(content.rows() if show_values else [], entry.first):
            yield from (f"    {number} {line}" for line in values.described(row))
    elif isinstance(content, Mark):
        how = f" {content.how}" if content.how else ""
        about = f"  {values.to_json(dict(content.metadata))}" if content.metadata else ""
        yield f"{head}episode {content.episode} {content.what}{how}{about}{gap}"
    else:
        yield f"{head}UNREADABLE: {content}{gap}"


def entry_json(entry: Entry, show_values: bool) -> dict[str, Any]:
    """Return what JSON has for an entry of a stream."""
    content = entry.content
    told: dict[str, Any] = {name: getattr(entry, name) for name in ("actor", "first", "last")}
    told |= {"incarnation": entry.incarnation, "missing": entry.missing, "bytes": entry.nbytes}
    if isinstance(content, Chunk):
        told |= {"kind": "chunk", "transitions": content.n, "policy": _policy(content)}
        if show_values:
            told["values"] = values.to_json(content.rows())
    elif isinstance(content, Mark):
        told |= {"kind": "mark", "what": content.what, "how": content.how}
        told |= {"episode": content.episode, "metadata": values.to_json(dict(content.metadata))}
    else:
        told |= {"kind": "error", "error": str(content)}
    return told


class ObservationText:
    """The lines for observations: their structure only where it changes."""

    def __init__(self) -> None:
        self._structure = ""

    def __call__(self, seen: Observation, show_values: bool) -> Iterator[str]:
        """Yield the lines for one."""
        head = f"{_now()}  {seen.number}  {seen.nbytes:,} B"
        if isinstance(seen.tree, AgentlaceError):
            yield f"{head}  UNREADABLE: {seen.tree}"
            return
        structure = values.structure(seen.tree)
        if structure != self._structure:
            self._structure = structure
            yield f"each has: {structure}"
        yield head + (f"  {seen.missed:,} missed before" if seen.missed else "")
        if show_values:
            yield from (f"    {line}" for line in values.described(seen.tree))


def observation_json(seen: Observation, show_values: bool) -> dict[str, Any]:
    """Return what JSON has for an observation."""
    told: dict[str, Any] = {"number": seen.number, "missed": seen.missed, "bytes": seen.nbytes}
    if isinstance(seen.tree, AgentlaceError):
        return told | {"error": str(seen.tree)}
    told["structure"] = values.structure(seen.tree)
    return told | ({"values": values.to_json(seen.tree)} if show_values else {})


def request_text(request: Request, show_values: bool) -> Iterator[str]:
    """Yield the lines for a request that waits."""
    left = f"{request.left_s:.1f} s left" if request.left_s > 0 else "past its deadline"
    called = f"{request.what} {request.name!r}" if request.name else request.what
    yield f"{_now()}  {called}  of {request.caller}  {request.nbytes:,} B  waits, {left}"
    if show_values:
        yield from (f"    {line}" for line in values.described(request.payload))


def request_json(request: Request, show_values: bool) -> dict[str, Any]:
    """Return what JSON has for a request."""
    told: dict[str, Any] = {
        **{name: getattr(request, name) for name in ("what", "name", "caller")},
        **{"left_s": round(request.left_s, 3), "bytes": request.nbytes},
    }
    return told | ({"payload": values.to_json(request.payload)} if show_values else {})
