"""The graph of nodes: per service who sends what to whom through the broker, and how fast.

A service is a lane. On its left are those who call it, in the middle what lies in the broker, on
its right who serves it. Every edge goes through the middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentlace.dashboard.history import rounded
from agentlace.dashboard.nodes import Doc, node_id
from agentlace.operating import Peer, Snapshot, StoreState
from agentlace.operating.snapshot import Series

FORGOTTEN_S = 3600.0
"""A server that has been gone for so long, and that nobody needs, is not shown."""
TITLES = {"actor": "actors", "recorder": "recorders"}

Rates = Mapping[Series, float]


def lanes(
    snapshot: Snapshot, rates: Rates, networks_per_s: Mapping[tuple[str, str], float]
) -> list[Doc]:
    """Return all lanes, those of trainers first.

    Args:
        snapshot: the system now.
        rates: how fast its counters grow.
        networks_per_s: by service and name, how many networks a node publishes or receives.
    """
    services = {peer.service for peer in snapshot.peers} | {s.service for s in snapshot.stores}
    ordered = sorted(services, key=lambda service: (not service.startswith("trainer"), service))
    return [
        _Lane(snapshot, rates, networks_per_s, service).told()
        for service in ordered
        if not _is_forgotten(snapshot, service)
    ]


def _is_forgotten(snapshot: Snapshot, service: str) -> bool:
    server = snapshot.server(service)
    if snapshot.clients(service):
        return False
    if any(store.streams for store in snapshot.stores if store.service == service):
        return False
    return server is None or (not server.is_there and server.beat_s > FORGOTTEN_S)


class _Lane:
    """One service's boxes and edges."""

    def __init__(
        self,
        snapshot: Snapshot,
        rates: Rates,
        networks_per_s: Mapping[tuple[str, str], float],
        service: str,
    ) -> None:
        self._service = service
        self._kind = service.split(":")[0]
        self._server = snapshot.server(service)
        self._clients = snapshot.clients(service)
        self._stores = [store for store in snapshot.stores if store.service == service]
        self._rates = {series: rate for series, rate in rates.items() if series[0] == service}
        self._networks = {n: v for (s, n), v in networks_per_s.items() if s == service}
        self._edges: list[Doc] = []

    def told(self) -> Doc:
        left = [self._group(does, nodes) for does, nodes in self._groups(False)]
        right = [self._server_box()] + [self._group(d, n) for d, n in self._groups(True)]
        middle = [*map(self._store_box, self._stores), *self._pills(left)]
        return {
            "service": self._service,
            **{"left": left, "middle": middle, "right": right, "edges": self._edges},
        }

    def _groups(self, are_consumers: bool) -> Iterator[tuple[str, list[Peer]]]:
        """Yield the clients by what they do; consumers stand on the other side."""
        for does in sorted({peer.does for peer in self._clients}):
            if (does == "recorder") == are_consumers:
                yield does, [peer for peer in self._clients if peer.does == does]

    def _group(self, does: str, nodes: list[Peer]) -> Doc:
        title = TITLES.get(does, "clients")
        return {
            "id": f"group {self._service} {does}",
            **{"kind": "group", "title": title if len(nodes) > 1 else title.removesuffix("s")},
            "nodes": [node_id(peer) for peer in nodes],
        }

    def _server_box(self) -> Doc:
        server = self._server
        title = f"server {self._service} {self._service}"
        nodes = [] if server is None else [node_id(server)]
        return {"id": title, "kind": "server", "title": self._service, "nodes": nodes}

    def _store_box(self, store: StoreState) -> Doc:
        box = f"store {self._service} {store.name}"
        actors, recorders = f"group {self._service} actor", f"group {self._service} recorder"
        sent = self._rate("transitions_sent_total", store=store.name)
        if any(peer.does == "actor" for peer in self._clients):
            self._edge(actors, box, sent, "transitions")
        taken = self._rate("transitions_applied_total", server=True, store=store.name)
        if self._server is not None:
            self._edge(box, self._server_box()["id"], taken, "transitions")
        recorded = self._rate("transitions_applied_total", server=False, store=store.name)
        if recorded is not None:
            self._edge(box, recorders, recorded, "transitions")
        return {
            **{"id": box, "kind": "store", "title": store.name, "behind": store.behind},
            **{"nbytes": store.nbytes, "budget_bytes": store.budget_bytes},
            "streams": len(store.streams),
        }

    def _pills(self, left: list[Doc]) -> Iterator[Doc]:
        if self._kind == "trainer":
            yield from self._networks_pill()
        answered = self._rate("requests_answered_total", server=True)
        if self._kind != "trainer" or answered:
            box = self._pill("requests")
            for group in left:
                self._edge(group["id"], box["id"], self._made_by(group), "requests")
            self._edge(box["id"], self._server_box()["id"], answered, "requests")
            yield box
        if self._kind == "action" and self._server and self._server.config.get("broadcast_port"):
            box = self._pill("observations")
            published = self._rate("observations_published_total", server=True)
            self._edge(self._server_box()["id"], box["id"], published, "observations")
            received = self._rate("observations_received_total", server=False)
            if received is not None and left:
                self._edge(box["id"], left[0]["id"], received, "observations")
            yield box

    def _networks_pill(self) -> Iterator[Doc]:
        version = None if self._server is None else self._server.value("network_version")
        if version:
            box = {**self._pill("networks"), "version": version}
            received = [rate for name, rate in self._networks.items() if name != self._service]
            published = self._networks.get(self._service)
            self._edge(self._server_box()["id"], box["id"], published, "networks")
            if any(peer.value("network_version") is not None for peer in self._clients):
                taken = sum(received) if received else None
                self._edge(box["id"], f"group {self._service} actor", taken, "networks")
            yield box

    def _pill(self, what: str) -> Doc:
        return {"id": f"{what} {self._service}", "kind": "pill", "title": what}

    def _made_by(self, group: Doc) -> float | None:
        names = {node.rpartition(f"{self._service} ")[2] for node in group["nodes"]}
        found = [
            rate
            for (_, name, metric, _), rate in self._rates.items()
            if metric == "requests_made_total" and name in names
        ]
        return sum(found) if found else None

    def _rate(self, metric: str, server: bool | None = None, **labels: str) -> float | None:
        """Return the sum of the rates of a metric, of the server, of clients, or of both."""
        found = [
            rate
            for (_, name, which, told), rate in self._rates.items()
            if which == metric
            and labels.items() <= dict(told).items()
            and (server is None or server == (name == self._service))
        ]
        return sum(found) if found else None

    def _edge(self, start: str, end: str, rate: float | None, what: str) -> None:
        edge = {"from": start, "to": end, "rate": rounded(rate), "what": what}
        self._edges.append(edge)
