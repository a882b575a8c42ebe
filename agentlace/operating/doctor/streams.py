"""The streams: what waits in them, and who does not read it."""

from __future__ import annotations

from collections.abc import Iterator

from agentlace.operating.doctor.findings import Finding, fail, ok, skip, warn
from agentlace.operating.doctor.patient import Patient
from agentlace.operating.stores import StoreState
from agentlace.transport.lag import ConsumerState
from agentlace.wording import duration, size

STUCK_S = 10.0
"""A consumer that is there, is behind and has not moved for longer is worth a warning."""
NEARLY_FULL = 0.8
"""A store of whose budget so much is unread is worth one too."""
FULL = 0.95


def streams(patient: Patient) -> Iterator[Finding]:
    """Compare what waits in each store's streams with its budget."""
    stores = [store for store in patient.snapshot.stores if store.streams or store.consumers]
    if not stores:
        yield skip("there are no streams")
    limit = patient.snapshot.broker.max_bytes // 2  # producers leave the other half alone
    for store in stores:
        of_trainer = [other for other in stores if other.service == store.service]
        shares = [store.budget_bytes, *([limit // len(of_trainer)] if limit else [])]
        yield _filled(store, min(shares), store.unread_bytes)


def _filled(store: StoreState, budget: int, unread: float) -> Finding:
    said = f"{_store(store)}: {size(unread)} of {size(budget)} wait to be read"
    if unread < NEARLY_FULL * budget:
        return ok(said)
    slowest = next(iter(store.consumers), None)
    if slowest is None:
        who, todo = "no consumer reads it", "start its trainer"
    else:
        who = f"{_consumer(slowest)} is {slowest.behind:,} transitions behind"
        todo = "start or speed it up, or raise Retention(max_bytes=…)"
        if not slowest.is_alive:
            todo = f"start it again, or: agentlace consumers forget {slowest.name}"
    if store.when_full == "drop_oldest":
        return warn(f"{said}, then the oldest are dropped; {who}", todo)
    full = unread >= FULL * budget
    then = "update() of its actors fails" if full else "then update() of its actors waits"
    return (fail if full else warn)(f"{said}, {then}; {who}", todo)


def consumers(patient: Patient) -> Iterator[Finding]:
    """Look whether each consumer of the streams is there, and keeps up."""
    found = [(store, state) for store in patient.snapshot.stores for state in store.consumers]
    if not found:
        yield skip("nobody reads streams")
    for store, state in found:
        said = f"{_store(store)}: {_consumer(state)}"
        if state.behind and not state.is_alive:
            yield warn(
                f"{said} has been silent for {duration(state.seen_s)}, and {state.behind:,} "
                "transitions are kept for it",
                f"start it again; if it is gone for good: agentlace consumers forget {state.name}",
            )
        elif state.behind and (state.progress_s or 0) > STUCK_S:
            yield warn(
                f"{said} is {state.behind:,} transitions behind, and has not moved for "
                f"{duration(state.progress_s)}",
                f"see its log on {state.host}; is its store full, or its disk?",
            )
        else:
            gone = "" if state.is_alive else f", silent for {duration(state.seen_s)}"
            yield ok(f"{said} is {state.behind:,} transitions behind{gone}")


def _store(store: StoreState) -> str:
    return f"store {store.name!r} of {store.service}"


def _consumer(state: ConsumerState) -> str:
    return f"consumer {state.name}" + (f" ({state.host} pid {state.pid})" if state.pid else "")
