"""Dicts whose images are decoded, and resized, when somebody looks at them."""

from __future__ import annotations

import sys
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import Any

_MISSING = object()


class Pending:
    """A value that is made when it is first asked for.

    Args:
        make: returns the value.
        told: what it will be, for people.
    """

    __slots__ = ("make", "told")

    def __init__(self, make: Callable[[], Any], told: str) -> None:
        self.make = make
        self.told = told


class LazyDict(dict[Any, Any]):
    """A dict whose :class:`Pending` values are made when they are first looked at, and kept.

    It behaves as a dict of the values: ``d[key]``, ``get``, ``pop``, ``values``, ``items``,
    ``==``, ``{**d}`` and ``dict(d)`` give arrays. JAX takes it for a dict. Looking at a value
    may raise what making it raises.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _register_with_jax()

    def __getitem__(self, key: Any) -> Any:
        """Return a value, made by now."""
        value = super().__getitem__(key)
        return self._made(key, value) if type(value) is Pending else value

    def _made(self, key: Any, pending: Pending) -> Any:
        value = pending.make()
        if super().get(key) is pending:  # else another thread has put one there
            self[key] = value
        return value

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys.

        That this method is here makes ``dict(d)`` and ``{**d}`` ask for each value.
        """
        return super().__iter__()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a value, made by now; the default if there is none."""
        return self[key] if key in self else default

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a value and return it, made by now."""
        value = super().pop(key, *default)
        return value.make() if type(value) is Pending else value

    def popitem(self) -> tuple[Any, Any]:
        """Remove the last value and return it with its key, made by now."""
        key, value = super().popitem()
        return key, value.make() if type(value) is Pending else value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return a value, made by now; put the default there if there is none."""
        super().setdefault(key, default)
        return self[key]

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return the values; each is made when it is come to."""
        return ValuesView(self)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        """Return keys and values; each is made when it is come to."""
        return ItemsView(self)

    def copy(self) -> dict[Any, Any]:
        """Return a plain dict of the values, all made by now."""
        return dict(self)

    def __or__(self, other: Any) -> Any:
        """Return a plain dict of both."""
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        """Return a plain dict of both."""
        return other | dict(self)

    def __eq__(self, other: object) -> bool:
        """Compare all values."""
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        """Compare all values."""
        return dict(self) != other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied as a plain dict."""
        return dict, (dict(self),)

    def __repr__(self) -> str:
        """Show the values, and of those that were not made yet what they will be."""
        raw = {key: super(LazyDict, self).__getitem__(key) for key in self}
        shown = (
            f"{k!r}: {f'<{v.told}>' if type(v) is Pending else repr(v)}" for k, v in raw.items()
        )
        return f"{{{', '.join(shown)}}}"


_known_to_jax = False


def _register_with_jax() -> None:
    """Make JAX take a LazyDict for the dict that it stands for; without importing JAX for it."""
    global _known_to_jax
    jax = None if _known_to_jax else sys.modules.get("jax")
    if jax is None or not hasattr(jax, "tree_util"):  # it may be half imported
        return
    _known_to_jax = True
    jax.tree_util.register_pytree_node(LazyDict, _flattened, _unflattened)


def _flattened(tree: LazyDict) -> tuple[list[Any], tuple[Any, ...]]:
    keys = tuple(sorted(tree))
    return [tree[key] for key in keys], keys


def _unflattened(keys: tuple[Any, ...], values: Any) -> dict[Any, Any]:
    return dict(zip(keys, values, strict=True))


def pending_at(tree: Any, path: str, make: Callable[[Any], Pending | None]) -> tuple[Any, bool]:
    """Return a tree with a pending value at a path, and whether it has anything there.

    Dicts on the way are replaced by copies, the last one by a LazyDict.

    Args:
        tree: nested dicts.
        path: keys, joined by ``/``.
        make: called with what is there; None leaves it as it is.
    """
    key, _, rest = path.partition("/")
    if not isinstance(tree, dict):
        return tree, False
    value = dict.get(tree, key, _MISSING)
    if value is _MISSING:
        return tree, False
    is_there = True
    if rest:
        new, is_there = pending_at(value, rest, make)
    else:
        new = make(value)
        new = value if new is None else new
    if new is value:
        return tree, is_there
    copied = tree
    if type(new) is Pending and type(tree) is not LazyDict:
        copied = LazyDict(tree)
    elif type(tree) is not LazyDict:
        copied = dict(tree)
    dict.__setitem__(copied, key, new)
    return copied, is_there
