"""Which request it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Ticket:
    """The identity of one request, kept by a caller that may repeat it.

    Attributes:
        server: the server that it was first meant for.
        sent: whether it may have reached a server, or may still do so.
    """

    id: int
    server: str | None
    sent: bool = False
