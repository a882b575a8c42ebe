"""``agentlace bench``: how fast this machine and the broker talk."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from agentlace.cli import options
from agentlace.cli.bench_rows import MEASURES, Bench, Row, rows
from agentlace.cli.options import BrokerOption, JsonOption, NamespaceOption
from agentlace.config import BrokerURL

NORMAL = {
    "round trip": ("0.05 ms", "0.3 ms", "3 ms"),
    "list echo": ("0.05 ms", "0.3 ms", "3 ms"),
    "act": ("0.3 ms", "1 ms", "10 ms"),
    "transitions, 98 kB": ("150 MB/s", "50 MB/s", "10 MB/s"),
    "observation, 1 MiB": ("1,000 MB/s", "50 MB/s", "10 MB/s"),
    "network, 5 MB": ("500 MB/s", "50 MB/s", "10 MB/s"),
}
"""What is usual on one machine, over a cable of 1 Gbit/s, and over good Wi-Fi."""
NAME_WIDTH = max(map(len, MEASURES))
HINT = (
    "usual: on the broker's machine, over a cable (1 Gbit/s), over Wi-Fi. Both ends are in this\n"
    "process: what is sent goes to the broker and comes back."
)


def bench(
    seconds: Annotated[float, typer.Option(help="About so long in all.", min=0.1, max=600)] = 5.0,
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Measure latency and throughput between this machine and the broker.

    Works in a namespace of its own with a random name, and removes all that it has made; at most
    128 MB are in the broker at a time. Needs a user who may do everything; what it may not do is
    left out, and then the exit status is 1.
    """
    url = options.broker_url(broker, namespace)
    with _interrupts() as check, Bench(url, seconds / len(MEASURES)) as made:
        found = list(rows(made, lambda _: check())) if as_json else _shown(url, made, check)
        check()
        if as_json:
            told = {"broker": str(url), "over": made.where(), "rows": [asdict(r) for r in found]}
            typer.echo(json.dumps(told, indent=2))
    if any(row.missing for row in found):
        raise typer.Exit(1)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Let SIGTERM be as a Ctrl-C, so that what was made is removed.

    Gives a function that raises KeyboardInterrupt if one came and got lost: Python swallows what
    is raised while an object is being finalised.
    """
    numbers, came = (signal.SIGINT, signal.SIGTERM), []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _shown(url: BrokerURL, made: Bench, check: Callable[[], None]) -> list[Row]:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"the broker at {url}, over {made.where()}")
    console.print(f"{'':{NAME_WIDTH}} {'median':>9} {'p99':>9} {'rate':>22}   usual")
    found = []
    with console.status("") as status:

        def begin(name: str) -> None:
            check()
            status.update(f"measures {name} …")

        for row in rows(made, begin):
            console.print(_line(row))
            found.append(row)
    console.print(HINT)
    if any(row.missing for row in found):
        sys.stderr.write("agentlace: not all could be measured: use a user who may do everything\n")
    return found


def _line(row: Row) -> str:
    if row.missing:
        return f"{row.name:{NAME_WIDTH}} not measured: {row.missing}"
    rate = f"{row.per_s:,.0f}/s"
    if row.mb_per_s:
        rate = f"{row.mb_per_s:,.0f} MB/s, {rate}"
    usual = ", ".join(NORMAL[row.name])
    return f"{row.name:{NAME_WIDTH}} {_ms(row.median_ms)} {_ms(row.p99_ms)} {rate:>22}   {usual}"


def _ms(value: float) -> str:
    return f"{value:>6.3g} ms" if value < 1000 else f"{value / 1000:>7.3g} s"
