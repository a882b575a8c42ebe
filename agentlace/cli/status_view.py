"""A report as it is shown on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agentlace.operating.report import Drop, NodeReport, Report, ServiceReport, StoreReport
from agentlace.wording import per_second, seconds, size

ROWS = 12
"""So many nodes of a service are shown one by one; those with something to tell come first."""
IDLE_S = 3.0
"""Who has counted nothing for longer is shown as idle."""
WAITS = 8
"""So many things are shown that nodes of a service wait for."""
BAR = 16
KEYS = 6
"""So many kinds of key are shown."""
DROPS = 8
WIDE = 100
"""From so many columns on, nodes are shown with where they run."""
IN = {
    "transitions_applied": "tr",
    "requests_answered": "req",
    "observations_received": "obs",
}
OUT = {
    "transitions_sent": "tr",
    "networks": "net",
    "observations_published": "obs",
    "requests_made": "req",
}
"""What goes in and out of a node, by counter, and what it is called in the table."""
STYLES = {"alive": "green", "late": "bold red", "gone": "bold red"}


def view(report: Report, show_all: bool = False, width: int = 80) -> Group:
    """Return a report as rich shows it.

    Args:
        report: of :func:`agentlace.operating.report`.
        show_all: every node, instead of ROWS of each service.
        width: of the terminal, in columns.
    """
    parts: list[RenderableType] = [_header(report)]
    parts += [_problem(report, number) for number in range(len(report.problems))]
    for service in report.services:
        parts += ["", *_service(service, show_all, width)]
    if not report.services:
        parts += ["", Text(f"no node is there in namespace {report.namespace!r}")]
    if report.stores:
        parts += ["", _stores(report.stores)]
    if report.drops:
        parts += ["", _drops(report.drops, show_all)]
    if report.broker.keys_bytes:
        parts += ["", _keys(report.broker.keys_bytes)]
    return Group(*parts)


def _header(report: Report) -> Text:
    broker = report.broker
    at = datetime.fromtimestamp(report.at_ms / 1000).strftime("%H:%M:%S")
    text = Text(broker.url, "bold")
    facts = [broker.version or "a broker that does not say what it is"]
    facts += [f"namespace {report.namespace}", f"up {seconds(broker.uptime_s)}", at]
    text.append("  " + "  ".join(facts) + "\n", "not bold")
    used = size(broker.used_bytes)
    if broker.max_bytes:
        used = f"{_bar(broker.used_bytes / broker.max_bytes)} {used} of {size(broker.max_bytes)}"
    trip = f"round trip {1000 * broker.round_trip_s:.2f} ms"
    return text.append(f"memory {used}  {trip}  {broker.clients} connections", "not bold")


def _problem(report: Report, number: int) -> Text:
    problem = report.problems[number]
    text = Text("! ", "bold red").append(problem.where, "bold")
    text.append(f": {problem.text}", "not bold default")
    if problem.hint:
        text.append(f"\n    {problem.hint}", "not bold cyan")
    return text


# -- nodes -----------------------------------------------------------------------------------------


def _service(service: ServiceReport, show_all: bool, width: int) -> Iterator[RenderableType]:
    title = Text(service.name, "bold")
    if service.queued:
        waiting = f"  {service.queued} request{'s' * (service.queued > 1)} waiting"
        title.append(waiting, "not bold yellow")
    if service.samples_per_insert is not None:
        ratio = f"  {service.samples_per_insert:.3g} samples per transition inserted"
        title.append(ratio, "not bold")
    yield title
    nodes = service.nodes if show_all else _chosen(service.nodes)
    yield _table(nodes, width)
    rest = [node for node in service.nodes if node not in nodes]
    if rest:
        yield Text(_together(rest), "dim")
    for line in _waits(service.nodes)[: None if show_all else WAITS]:
        yield Padding(Text(line, "yellow"), (0, 0, 0, 2))
    for node in nodes:
        if node.reports:
            told = ", ".join(f"{name} {value:.5g}" for name, value in node.reports.items())
            yield Padding(Text(f"{_called(node)} reports {told}", "dim"), (0, 0, 0, 2))


def _waits(nodes: list[NodeReport]) -> list[str]:
    """Return what nodes wait for; waits of several that differ in numbers only are one."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for wait in node.waits:
            kind = node.does + re.sub(r"\d+", "", wait)
            found.setdefault(kind, []).append(f"{_called(node)} waits for {wait}")
    return [
        waits[0] + (f"; so do{'es' * (more == 1)} {more} more" if (more := len(waits) - 1) else "")
        for waits in found.values()
    ]


def _chosen(nodes: list[NodeReport]) -> list[NodeReport]:
    """Return the nodes to show one by one, in their order."""
    if len(nodes) <= ROWS:
        return nodes
    first = sorted(nodes, key=_urgency)[: ROWS - 1]
    return [node for node in nodes if node in first]


def _urgency(node: NodeReport) -> tuple[bool, ...]:
    is_old = node.policy is not None and node.policy.behind > 1
    return (not node.is_server, node.state == "alive", not node.waits, not is_old, not _idle(node))


def _idle(node: NodeReport) -> bool:
    return node.progress_s is not None and node.progress_s > IDLE_S


def _together(nodes: list[NodeReport]) -> str:
    sent = sum(node.rates.get(name, 0.0) for node in nodes for name in OUT)
    idle = sum(map(_idle, nodes))
    parts = [f"  and {len(nodes)} more, {idle or 'none'} idle, {per_second(sent)} /s out"]
    policies = [node.policy.version for node in nodes if node.policy is not None]
    if policies:
        parts.append(f"policies {min(policies)} to {max(policies)}")
    return ", ".join(parts) + " (--all shows them)"


def _table(nodes: list[NodeReport], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    node_width, where_width = (30, 24) if width >= WIDE else (19, 11)
    for title, column in (("  node", node_width), ("where", where_width)):
        table.add_column(title, overflow="ellipsis", no_wrap=True, width=column)
    table.add_column("state", no_wrap=True, min_width=10)
    for title, column in (("in /s", 8), ("out /s", 8), ("policy", 12), ("lag", 5)):
        table.add_column(title, justify="right", no_wrap=True, min_width=column)
    for node in nodes:
        where = f"{node.host}:{node.pid}"
        rates = (_flow(node, IN), _flow(node, OUT))
        lag = "" if node.lag is None else f"{node.lag:,}"
        name = f"  {_called(node)}"
        table.add_row(name, where, _state(node), *rates, _policy(node), lag)
    return table


def _called(node: NodeReport) -> str:
    if node.is_server or node.name.startswith(f"{node.does}:"):
        return node.does if node.is_server else node.name
    return f"{node.does} {node.name}"


def _state(node: NodeReport) -> Text:
    if node.state != "alive":
        return Text(f"{node.state} {seconds(node.beat_s)}", STYLES[node.state])
    if _idle(node):
        return Text(f"idle {seconds(node.progress_s)}", "yellow")
    return Text("alive", STYLES["alive"])


def _flow(node: NodeReport, names: dict[str, str]) -> str:
    found = [f"{per_second(node.rates[n])} {unit}" for n, unit in names.items() if n in node.rates]
    busy = [flow for flow in found if not flow.startswith("0 ")]
    return " ".join(busy or found[:1])


def _policy(node: NodeReport) -> Text:
    policy = node.policy
    if policy is None:
        return Text("")
    age = "" if policy.age_s is None else f" {seconds(policy.age_s)}"
    if not policy.behind:
        return Text(f"{policy.version}{age}")
    return Text(f"{policy.version} (-{policy.behind}){age}", "yellow")


# -- stores, drops, keys ---------------------------------------------------------------------------


def _stores(stores: Iterable[StoreReport]) -> Group:
    lines = []
    for store in stores:
        share = store.used_bytes / store.budget_bytes if store.budget_bytes else 0.0
        text = Text(f"store {store.name}", "bold")
        text.append(f" of {store.service}  {_bar(share)} {size(store.used_bytes)} of ", "not bold")
        text.append(f"{size(store.budget_bytes)} ({store.when_full})  ", "not bold")
        text.append(f"{store.streams} stream{'s' * (store.streams != 1)}", "not bold")
        for consumer in store.consumers:
            state = "alive" if consumer.is_alive else f"silent {seconds(consumer.seen_s)}"
            behind = "up to date" if not consumer.behind else f"{consumer.behind:,} behind"
            progress = f"progress {seconds(consumer.progress_s)} ago"
            text.append(f"\n  {_short(consumer.name)}  {state}  {behind}  {progress}", "not bold")
        lines.append(text)
    return Group(*lines)


def _short(consumer: str) -> str:
    """Return a consumer's name; of a trainer's the beginning tells enough."""
    role, _, which = consumer.partition(":")
    return f"{role}:{which[:8]}…" if role == "trainer" and len(which) > 8 else consumer


def _drops(drops: list[Drop], show_all: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("dropped", justify="right")
    table.add_column("/s", justify="right")
    table.add_column("why", overflow="fold")
    table.add_column("by", overflow="ellipsis", no_wrap=True)
    for drop in drops if show_all else drops[:DROPS]:
        rate = "" if drop.per_s is None else per_second(drop.per_s)
        store = f" (store {drop.store})" if drop.store else ""
        by = drop.node if drop.node == drop.service else f"{drop.node} of {drop.service}"
        style = "red" if drop.per_s else ""
        table.add_row(f"{drop.count:,}", rate, drop.reason + store, by, style=style)
    return table


def _keys(keys_bytes: dict[str, int]) -> Text:
    largest = sorted(keys_bytes.items(), key=lambda pair: -pair[1])
    shown = [f"{name} {size(nbytes)}" for name, nbytes in largest[:KEYS]]
    rest = sum(nbytes for _, nbytes in largest[KEYS:])
    text = Text("keys  ", "bold").append(" · ".join(shown), "not bold")
    return text.append(f" · others {size(rest)}" if rest else "", "not bold")


def _bar(share: float) -> str:
    filled = min(round(BAR * share), BAR)
    return "█" * filled + "░" * (BAR - filled)
