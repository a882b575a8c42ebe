"""``agentlace tail``: read along what passes through the broker."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

import typer

from agentlace.cli import tail_lines
from agentlace.cli.options import BrokerOption, NamespaceOption, broker_url, channel
from agentlace.cli.services import service_keys
from agentlace.cli.tally import Tally
from agentlace.codec import Chunk
from agentlace.errors import BrokerUnreachable
from agentlace.operating.following import (
    Entry,
    Observation,
    ObservationFollower,
    Request,
    RequestFollower,
    StreamFollower,
)
from agentlace.operating.peers import Peer, peers
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.wording import per_second

SLICE_S = 0.5
QUEUE_POLL_S = 0.1

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    help="Read along what passes through the broker, decoded, with rates and sizes; until Ctrl-C. "
    "Nothing is taken, registered or changed: the role `observer` is enough.",
)

LimitOption = Annotated[
    int | None, typer.Option("--limit", "-n", help="End after so many.", min=1, metavar="N")
]
ValuesOption = Annotated[bool, typer.Option("--values", help="Show what they hold.")]
LinesOption = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each.")]


class From(str, Enum):
    """Where in a stream to begin."""

    START = "start"
    NOW = "now"


@app.command("stream")
def stream(
    store: Annotated[str, typer.Argument(help="Name of the store, such as env.")],
    actor: Annotated[
        list[str] | None, typer.Option("--actor", help="Only this one; may be repeated.")
    ] = None,
    begin: Annotated[
        From, typer.Option("--from", help="What the stream still holds, or what comes now.")
    ] = From.NOW,
    port: Annotated[int, typer.Option("--port", help="The trainer's port_number.")] = 5555,
    show_values: ValuesOption = False,
    limit: LimitOption = None,
    as_json: LinesOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Follow the transitions of a store: a line for each chunk, and the rates every second.

    A chunk shows its actor, the numbers of its transitions, its bytes, the network that the actor
    acted with (policy), and how many transitions are missing before it.
    """
    url = broker_url(broker, namespace)
    keys = ServiceKeys(url.namespace, "trainer", port).store(store)
    with channel(url) as to_broker:
        follower = StreamFollower(to_broker, keys, actor or (), begin is From.START)
        wanted = f"actor {' or '.join(actor)}" if actor else "an actor"
        note = "" if follower.actors else f"waits for {wanted} of store {store!r} at {url}"
        shown = _Shown(tail_lines.entry_text, tail_lines.entry_json, show_values, as_json)
        tally = Tally("transitions", "chunks")

        def show(entry: Entry) -> None:
            rows = entry.content.n if isinstance(entry.content, Chunk) else 0
            tally.add(entry.actor, rows, entry.nbytes, entry.missing)
            shown(entry)

        _follow(lambda: follower.read(SLICE_S), show, tally, limit, as_json, note)


@app.command("obs")
def obs(
    port: Annotated[int, typer.Argument(help="The robot's port_number, such as 5556.")],
    show_values: ValuesOption = False,
    limit: LimitOption = None,
    as_json: LinesOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Follow the observations that a robot broadcasts: what they consist of, rates, sizes.

    If they come faster than they can be shown, the newest are shown, and the others counted.
    """
    url = broker_url(broker, namespace)
    keys = ServiceKeys(url.namespace, "action", port)
    with contextlib.closing(ObservationFollower(Broker(url, keys.prefix), keys)) as follower:
        text = tail_lines.ObservationText()
        shown = _Shown(text, tail_lines.observation_json, show_values, as_json)
        tally = Tally("observations")

        def show(seen: Observation) -> None:
            tally.add("", 1, seen.nbytes, seen.missed)
            shown(seen)

        _follow(follower.read, show, tally, limit, as_json)


@app.command("requests")
def requests(
    service: Annotated[str, typer.Argument(help="Such as action:5556.")],
    show_values: ValuesOption = False,
    limit: LimitOption = None,
    as_json: LinesOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Follow the requests that wait for a server, and how many it answers.

    A server that is free takes a request at once, and then nobody else can see it. So those are
    shown that have to wait for about a tenth of a second: at a busy server, or without one. How
    many are answered and dropped is what the server itself counts, once a second.
    """
    url = broker_url(broker, namespace)
    keys = service_keys(url, service)
    with channel(url) as to_broker:
        follower, server = RequestFollower(to_broker, keys), _Server(to_broker, keys)
        shown = _Shown(tail_lines.request_text, tail_lines.request_json, show_values, as_json)
        tally, pause = Tally("requests seen waiting"), threading.Event()

        def read() -> list[Request]:
            waiting, new = follower.read()
            if not as_json and (line := server.news(waiting)):
                typer.echo(line)
            if not new:
                pause.wait(QUEUE_POLL_S)
            return new

        def show(request: Request) -> None:
            tally.add("", 1, request.nbytes)
            shown(request)

        _follow(read, show, tally, limit, as_json)


@dataclass(frozen=True)
class _Shown:
    """Shows one thing after the other."""

    text: Callable[[Any, bool], Iterable[str]]
    json: Callable[[Any, bool], dict[str, Any]]
    show_values: bool
    as_json: bool

    def __call__(self, thing: Any) -> None:
        if self.as_json:
            typer.echo(json.dumps(self.json(thing, self.show_values)))
            return
        for line in self.text(thing, self.show_values):
            typer.echo(line)


def _follow(
    read: Callable[[], list[T]],
    show: Callable[[T], None],
    tally: Tally,
    limit: int | None,
    as_json: bool,
    note: str = "",
) -> None:
    """Show what comes until Ctrl-C, or so many; then what came in all."""
    backoff, pause = Backoff(), threading.Event()
    with contextlib.suppress(KeyboardInterrupt):
        if note:
            typer.echo(note, err=True)
        while limit is None or tally.seen < limit:
            try:
                found = read()
                backoff.reset()
            except BrokerUnreachable as error:  # it may come back
                if backoff.is_news(error):
                    typer.echo(f"waits for the broker: {error}", err=True)
                pause.wait(backoff.next_s())
                continue
            for thing in found[: None if limit is None else limit - tally.seen]:
                show(thing)
            for line in tally.rates():
                typer.echo(line, err=as_json)
    typer.echo(tally.summary(), err=True)


class _Server:
    """What a server says of the requests that it answers, from heartbeat to heartbeat."""

    def __init__(self, to_broker: Channel, keys: ServiceKeys) -> None:
        self._channel = to_broker
        self._keys = keys
        self._before: Peer | None = None

    def news(self, waiting: int) -> str | None:
        """Return how many requests it has answered since it said so last; None if it has not."""
        found = peers(self._channel, self._keys.namespace, [self._keys.server])
        now = found[0] if found else None
        before, self._before = self._before, now
        if now is None:
            return f"-- no server {self._keys.name}, {waiting} waiting" if before else None
        if before is None or before.token != now.token or before.told_ms == now.told_ms:
            return None
        seconds = (now.told_ms - before.told_ms) / 1000
        rates = {
            what: _grown(before, now, f"requests_{what}_total") / seconds
            for what in ("answered", "expired", "unreadable")
        }
        told = [f"{per_second(rate)} {what}/s" for what, rate in rates.items() if rate]
        return f"-- {', '.join(told) or 'none answered'}, {waiting} waiting"


def _grown(before: Peer, now: Peer, counter: str) -> float:
    return (now.value(counter) or 0.0) - (before.value(counter) or 0.0)
