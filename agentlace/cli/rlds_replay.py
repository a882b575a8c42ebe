"""``agentlace rlds replay``: a dataset streamed into a trainer, as if it were live."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agentlace.cli import options
from agentlace.cli.options import BrokerOption, NamespaceOption
from agentlace.cli.progress import shown
from agentlace.config import BrokerURL, TrainerConfig
from agentlace.data.data_store import QueuedDataStore
from agentlace.errors import DecodeError
from agentlace.progress import counted
from agentlace.rlds.episode import Episode
from agentlace.rlds.reader import DatasetReader
from agentlace.trainer.client import TrainerClient
from agentlace.trainer.replay import BATCH_MAX, Replay, Replayed
from agentlace.transport import presence
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_MS = 5000.0
"""Deadline of one update, and of the last confirmation."""
WAIT_POLL_S = 0.2


def replay(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    store: Annotated[str, typer.Option(help="Of the trainer.", metavar="NAME", show_default=False)],
    rate: Annotated[
        float | None,
        typer.Option(help="Transitions per second; as fast as possible if left out.", metavar="HZ"),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end.")] = False,
    episodes: Annotated[
        int | None, typer.Option(help="Stop after so many episodes.", min=1, metavar="N")
    ] = None,
    extras: Annotated[
        bool, typer.Option("--extras", help="Also send further entries of steps, such as texts.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the trainer.")] = False,
    port: Annotated[
        int, typer.Option("--trainer-port", "--port", help="port_number of the trainer's config.")
    ] = TrainerConfig.port_number,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Stream a dataset into a trainer's store, as an actor would.

    Late transitions are caught up with, so that the rate holds on the whole. Ctrl-C stops.
    """
    if rate is not None and rate <= 0:
        raise typer.BadParameter("must be positive", param_hint="--rate")
    reader = DatasetReader(directory)
    if not len(reader):
        raise DecodeError(f"the dataset in {directory} has no episodes")
    url = options.broker_url(broker, namespace)
    with _stopped_by_signals() as stop:
        config = _config_of(url, port, wait, stop)
        if config is None:
            return
        queue = QueuedDataStore(BATCH_MAX)
        with TrainerClient(
            "replay",
            url.host,
            config,
            data_stores={store: queue},
            timeout_ms=TIMEOUT_MS,
            broker=url,
        ) as client:
            wanted = itertools.islice(_episodes(reader, loop), episodes)
            total = episodes if loop else min(len(reader), episodes or len(reader))
            with shown(f"replaying {directory}", total, "episodes") as advance:
                replay = Replay(client, store, queue, rate, stop, extras)
                replayed = replay.run(counted(wanted, advance))
    _summarise(replayed, rate, store)


def _episodes(reader: DatasetReader, loop: bool) -> Iterator[Episode]:
    yield from reader.episodes()
    while loop:
        yield from reader.episodes()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _config_of(
    url: BrokerURL, port: int, wait: bool, stop: threading.Event
) -> TrainerConfig | None:
    """Return the config of the trainer that runs; None if it was stopped before there was one.

    Raises:
        PeerAbsent: none runs, and it is not to be waited for.
    """
    keys = ServiceKeys(url.namespace, "trainer", port)
    with contextlib.closing(Broker(url).channel(CONNECT_TIMEOUT_S, keys.prefix)) as channel:
        while (server := presence.read_peer(channel, keys.server)) is None:
            if not wait:
                raise presence.absent(channel, keys)
            if stop.wait(WAIT_POLL_S):
                return None
    return TrainerConfig(**server["config"])


def _summarise(replayed: Replayed, rate: float | None, store: str) -> None:
    typer.echo(
        f"{replayed.episodes:,} episodes, {replayed.transitions:,} transitions "
        f"in {replayed.seconds:.1f} s: {replayed.rate_hz:,.1f} per second"
    )
    if rate is not None:
        typer.echo(f"at most {1000 * replayed.behind_s:,.0f} ms late for {rate:g} per second")
    if not replayed.confirmed:
        typer.echo(f"the trainer did not confirm that store {store!r} has all of them", err=True)
        raise typer.Exit(1)
    typer.echo(f"the trainer's store {store!r} has all of them")
