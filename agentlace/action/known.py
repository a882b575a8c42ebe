"""Keys that nobody declared."""

from __future__ import annotations

from collections.abc import Iterable

from agentlace.errors import UnknownRequest


def check_known(keys: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raise UnknownRequest if a key is not one of those that the config declares."""
    unknown = sorted(map(str, set(keys) - set(known)))
    if unknown:
        raise UnknownRequest(
            f"unknown {kind} key {', '.join(map(repr, unknown))}; "
            f"the config has {', '.join(map(repr, sorted(known))) or 'none'}"
        )
