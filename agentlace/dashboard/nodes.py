"""Each node as the page shows it, and what is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from agentlace.dashboard.history import rounded
from agentlace.operating import Peer, Snapshot
from agentlace.operating.problems import LATE
from agentlace.operating.problems import problems as operating_problems
from agentlace.operating.snapshot import Series
from agentlace.wording import seconds

IDLE_S = 10.0
"""A node that has counted nothing for so long is shown as idle."""
NAMED_MAX = 3
"""So many nodes with the same problem are named, the others counted."""
BAD, WARNING = "bad", "warning"
COUNTED = {
    "actor": ("transitions_sent_total", "transitions"),
    "trainer": ("transitions_applied_total", "transitions"),
    "recorder": ("transitions_applied_total", "transitions"),
    "action": ("requests_answered_total", "requests"),
    "inference": ("requests_answered_total", "requests"),
}
"""What the rate of a node is of; of others it is the requests that they make."""
DROPS = {
    "transitions_lost_total": "transitions overwritten before they were sent",
    "transitions_dropped_total": "transitions dropped unread at the broker",
    "transitions_rejected_total": "transitions refused by the store",
    "transitions_missing_total": "transitions missing in a stream",
    "requests_expired_total": "requests dropped after their deadline",
    "requests_unreadable_total": "requests that could not be read",
    "requests_failed_total": "requests without an answer",
    "observations_missed_total": "observations missed",
}

Doc = dict[str, Any]
ByNode = Mapping[tuple[str, str], Mapping[str, float]]


def by_node(rates: Mapping[Series, float]) -> ByNode:
    """Return the rates of each node, by service and name, over all labels."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (service, name, metric, _), rate in rates.items():
        found[service, name][metric] += rate
    return found


def node_id(peer: Peer) -> str:
    """Return what tells a node from all others, also after it was restarted."""
    return f"{'server' if peer.is_server else 'client'} {peer.service} {peer.name}"


def state_of(peer: Peer, is_paused: bool) -> str:
    """Return ``gone``, ``late``, ``waits``, ``paused``, ``idle`` or ``ok``."""
    if not peer.is_there:
        return "gone"
    if peer.is_late:
        return "late"
    if is_paused:
        return "paused"
    if peer.waits:
        return "waits"
    return "idle" if (peer.idle_s or 0.0) > IDLE_S else "ok"


def node(peer: Peer, rates: ByNode, is_paused: bool) -> Doc:
    """Return a node as the page shows it.

    Args:
        peer: the node.
        rates: of all nodes.
        is_paused: whether it stands still because its trainer wants that.
    """
    metric, counted = COUNTED.get(peer.does, ("requests_made_total", "requests"))
    mine = rates.get((peer.service, peer.name), {})
    drops = [peer.value(name) or 0.0 for name in DROPS if name.startswith("transitions")]
    return {
        "id": node_id(peer),
        **{"service": peer.service, "name": peer.name, "does": peer.does},
        **{"host": peer.host, "pid": peer.pid, "version": peer.version},
        "state": state_of(peer, is_paused),
        "beat_s": round(peer.beat_s, 1),
        "idle_s": None if peer.idle_s is None else round(peer.idle_s, 1),
        "waits": list(peer.waits),
        "rate": rounded(mine.get(metric)),
        "counted": counted,
        "pending": peer.value("transitions_pending"),
        "policy": peer.value("network_version"),
        "policy_age_s": rounded(peer.value("network_age_seconds")),
        "lost": sum(drops),
    }


def problems(snapshot: Snapshot) -> list[Doc]:
    """Return what is wrong, the worst first: level, whose, and text."""
    found = list(_of_late(snapshot))
    for problem in operating_problems(snapshot):
        if problem.kind != LATE:
            text = f"{problem.text}: {problem.hint}" if problem.hint else problem.text
            found.append(_problem(BAD, problem.where, text))
    for peer in snapshot.peers:
        if peer.is_there:
            found += [_problem(WARNING, peer.name, f"waits: {text}") for text in peer.waits]
    return found


def _problem(level: str, who: str, text: str) -> Doc:
    return {"level": level, "who": who, "text": text}


def _of_late(snapshot: Snapshot) -> Iterator[Doc]:
    """Tell of nodes that do not beat; of many at once in one line."""
    late = [peer for peer in snapshot.peers if peer.is_late]
    text = "does not beat for {}: it is stopped, stuck or cut off"
    if len(late) <= NAMED_MAX:
        for peer in late:
            yield _problem(BAD, peer.name, text.format(seconds(peer.beat_s)))
        return
    names = ", ".join(peer.name for peer in late[:NAMED_MAX])
    longest = seconds(max(peer.beat_s for peer in late))
    others = f"{names} and {len(late) - NAMED_MAX} more"
    yield _problem(BAD, f"{len(late)} nodes", f"do not beat, for up to {longest}: {others}")
