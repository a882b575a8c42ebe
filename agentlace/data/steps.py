"""The steps of an RLDS episode, and the transitions that they make.

An episode of N transitions has N + 1 steps. Step t holds what was observed, the action that was
taken then, and the reward that it brought; the last step holds what was observed at the end, and
nothing else of it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from agentlace.data.columns import Array, leaves_of, map_leaves
from agentlace.errors import DecodeError

KNOWN = frozenset({"observation", "action", "reward", "is_last", "is_terminal"})
"""What of a step goes into a transition; all else is told beside it."""


class Pairs(NamedTuple):
    """The transitions of one episode.

    Attributes:
        columns: ``observations``, ``next_observations``, ``actions``, ``rewards`` (float32),
            ``masks`` (float32, 0 where the episode terminated) and ``dones`` (bool, the last
            ones); arrays with leading dimension N. Those of steps are views where possible.
        at: numbers of the steps at which they begin, of shape (N,).
    """

    columns: dict[str, Any]
    at: Array


def stacked(steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return steps as columns: a dict of arrays whose leading dimension counts the steps.

    What has another shape at each step becomes a column of Python objects.
    """
    rows = list(steps)
    return map_leaves(lambda *values: _column(values), *rows) if rows else {}


def _column(values: tuple[Any, ...]) -> Array:
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def count(steps: Mapping[str, Any]) -> int:
    """Return the number of steps of an episode that is given as columns."""
    return next((len(column) for _, column in leaves_of(steps)), 0)


def pair(steps: Mapping[str, Any]) -> Pairs:
    """Return the transitions of an episode that is given as columns.

    Transition t goes from step t to step t + 1. It terminated if step t + 1 says so. So did one
    in the middle with a discount of 0, after which the episode goes on, unless all discounts
    are. Where a step in the middle says that it is the last one, the next one begins anew, and
    nothing leads from one to the other.

    Raises:
        DecodeError: the steps have no observations or no actions.
    """
    for key in ("observation", "action"):
        if key not in steps:
            known = ", ".join(sorted(map(str, steps))) or "nothing"
            raise DecodeError(f"the steps of the dataset have no {key!r}, only {known}")
    n = count(steps)
    last, terminal = _flag(steps, "is_last", n), _flag(steps, "is_terminal", n)
    starts = _flag(steps, "is_first", n)[1:]
    last[-1:] = True  # of steps that end without saying so
    last[:-1] |= starts
    at = np.flatnonzero(~last[:-1])
    columns = {
        "observations": _take(steps["observation"], at, n),
        "next_observations": _take(steps["observation"], at + 1, n),
        "actions": _take(steps["action"], at, n),
        "rewards": _rewards(steps, n)[at],
        "masks": (~terminal[at + 1] & (last[at + 1] | ~_dead(steps, at))).astype(np.float32),
        "dones": last[at + 1],
    }
    return Pairs(columns, at)


def _flag(steps: Mapping[str, Any], name: str, n: int) -> Array:
    flags = steps.get(name)
    return np.zeros(n, bool) if flags is None else np.array(flags, bool).reshape(n)


def _dead(steps: Mapping[str, Any], at: Array) -> Array:
    """Return which of these steps have a discount of 0, if there are others."""
    if "discount" not in steps:
        return np.zeros(len(at), bool)
    zero = np.asarray(steps["discount"])[at] == 0
    return np.zeros(len(at), bool) if zero.all() else zero


def _rewards(steps: Mapping[str, Any], n: int) -> Array:
    rewards = steps.get("reward")
    return np.zeros(n, np.float32) if rewards is None else np.asarray(rewards, np.float32)


def _take(columns: Any, rows: Array, n: int) -> Any:
    if len(rows) == n - 1:  # all but one: no copy
        part = slice(int(rows[0]), int(rows[-1]) + 1) if n > 1 else slice(0)
        return map_leaves(lambda column: column[part], columns)
    return map_leaves(lambda column: column[rows], columns)
