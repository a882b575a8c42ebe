"""Where in a tree the value is that may not travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlace.codec.tree import REFUSALS, TreeEncoder, is_box, is_frozen_dict
from agentlace.errors import EncodeError

SEARCH_DEPTH = 500


def find_offender(tree: Any) -> EncodeError:
    """Return the error for a tree that :class:`TreeEncoder` refused, naming the first bad place."""
    try:
        found = _search(tree, ())
    except RecursionError:
        found = EncodeError("", "nested too deeply, or it contains itself")
    return found or EncodeError("", "nested too deeply, or it changed while it was being encoded")


def _search(value: Any, path: tuple[str, ...]) -> EncodeError | None:
    where = "/".join(path)
    if len(path) > SEARCH_DEPTH:
        return EncodeError(where[:200], "nested too deeply, or it contains itself")
    if is_box(value):
        return _search(value[()], path)
    children = _children(value)
    for name, child in children:
        found = _search(child, (*path, name))
        if found:
            return found
    if children:  # what is left to refuse are the keys
        value = dict.fromkeys(value) if isinstance(value, Mapping) else None
    try:
        TreeEncoder().pack(value)
    except REFUSALS as error:
        return EncodeError(where, str(error))
    return None


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) or is_frozen_dict(value):
        return [(_name(key), child) for key, child in value.items()]
    if type(value) in (list, tuple, set, frozenset):
        return [(str(i), child) for i, child in enumerate(value)]
    return []


def _name(key: Any) -> str:
    try:
        return str(key)
    except ValueError:  # an int of more digits than Python writes
        return "?"
