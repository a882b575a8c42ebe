"""Trees of values as JSON and as text, for the command line."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.codec.images import Encoded, encoded_of
from agentlace.errors import AgentlaceError

ARRAY, BYTES = "$array", "$bytes"
SHOWN_VALUES = 4
SHOWN_CHARS = 200
STDIN = "-"

RULE = (
    "A list of numbers, also nested, becomes an array: int64 if all are whole, else float32 (or "
    '--dtype). {"$array": [1, 2], "dtype": "uint8"} is an array of that dtype, {"$bytes": '
    '"aGk="} bytes in base64; @FILE reads a file.'
)
"""How JSON becomes values, for help texts."""


class BadValue(AgentlaceError, ValueError):
    """Something on the command line that is no value."""


def parse(text: str, dtype: str | None = None) -> Any:
    """Return the value that JSON stands for; see RULE.

    Args:
        text: JSON, or ``@`` and the name of a file that holds it.
        dtype: of lists of numbers.

    Raises:
        BadValue: it is no JSON, or no value.
    """
    try:
        source = Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text
        return _value(json.loads(source), None if dtype is None else np.dtype(dtype))
    except json.JSONDecodeError as error:
        raise BadValue(f"{text[:60]!r} is no JSON: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadValue(f"{text[:60]!r} is no value: {error}") from None


def _value(value: Any, dtype: np.dtype[Any] | None) -> Any:
    match value:
        case {"$array": items, **more} if more.keys() <= {"dtype"}:
            wanted: Any = more.get("dtype", dtype)
            return np.array(items, wanted)
        case {"$bytes": str(text), **more} if not more:
            return base64.b64decode(text, validate=True)
        case dict():
            return {name: _value(item, dtype) for name, item in value.items()}
        case list() if value and _are_numbers(value):
            return _array(value, dtype)
        case list():
            return [_value(item, dtype) for item in value]
    return value


def _are_numbers(items: list[Any]) -> bool:
    """Whether a list, also nested, holds nothing but numbers, or nothing but truth values."""
    return all(
        (_are_numbers(item) if item else False)
        if isinstance(item, list)
        else isinstance(item, (int, float))
        for item in items
    )


def _array(items: list[Any], dtype: np.dtype[Any] | None) -> Any:
    try:
        array = np.array(items)
    except ValueError:  # ragged: a list of arrays
        return [_array(i, dtype) if isinstance(i, list) else i for i in items]
    if dtype is not None:
        return array.astype(dtype)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def to_json(tree: Any) -> Any:
    """Return a tree as plain values; what :func:`parse` reads gives the same arrays again."""
    match tree:
        case dict():
            return {str(name): to_json(value) for name, value in tree.items()}
        case set() | frozenset():
            return sorted((to_json(value) for value in tree), key=str)
        case list() | tuple():
            return [to_json(value) for value in tree]
        case np.ndarray() | np.generic():
            plain = tree if tree.dtype.kind in "biufU" else tree.astype(np.str_)
            return {ARRAY: plain.tolist(), "dtype": str(tree.dtype)}
        case bytes() | bytearray() | memoryview():
            return {BYTES: base64.b64encode(tree).decode()}
        case None | bool() | int() | float() | str():
            return tree
    return str(tree)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all leaves with their paths, such as ``observations/image``."""
    image = _image(tree)
    if image is not None:
        yield path, image
        return
    if isinstance(tree, dict) and tree:
        items: Any = tree.items()
    elif isinstance(tree, (list, tuple)) and tree:
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for name, value in items:
        yield from leaves(value, f"{path}/{name}" if path else str(name))


def _image(value: Any) -> Encoded | None:
    """Return the encoded image that this is; it is shown as one, and not decoded."""
    with contextlib.suppress(AgentlaceError):
        return encoded_of(value)
    return None


def structure(tree: Any) -> str:
    """Return what a tree consists of, in one line: paths, dtypes and shapes."""
    return ", ".join(f"{path or 'value'} {_kind(leaf)}" for path, leaf in leaves(tree))


def _kind(leaf: Any) -> str:
    if isinstance(leaf, Encoded):
        return str(leaf)
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return str(leaf.dtype) if isinstance(leaf, np.generic) else type(leaf).__name__


def described(tree: Any) -> Iterator[str]:
    """Yield a line for each leaf: its path, and its value, or of an array what it holds."""
    for path, leaf in leaves(tree):
        yield f"{path}: {_shown(leaf)}" if path else _shown(leaf)


def _shown(leaf: Any) -> str:
    if isinstance(leaf, Encoded):
        return f"{leaf}, {leaf.data.nbytes:,} B"
    if not isinstance(leaf, np.ndarray):
        return repr(leaf)[:SHOWN_CHARS]
    if leaf.size == 0 or leaf.dtype.kind not in "biuf":
        return f"{_kind(leaf)} {str(leaf.ravel()[:SHOWN_VALUES].tolist())[:SHOWN_CHARS]}"
    first = ", ".join(f"{value:.5g}" for value in leaf.ravel()[:SHOWN_VALUES].tolist())
    more = ", …" if leaf.size > SHOWN_VALUES else ""
    return f"{_kind(leaf)} min {leaf.min():.5g} max {leaf.max():.5g}: [{first}{more}]"
