"""One episode as RLDS has it, and the way from and to transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from agentlace.errors import SchemaMismatch

Ending = Literal["terminated", "truncated", "aborted"]
"""How an episode ended: by its task, by a limit from outside, or because nobody went on with it."""
ENDINGS: tuple[Ending, ...] = get_args(Ending)

STATE = "state"
"""Key of an observation that is a bare array."""
NOT_EXTRA = frozenset(
    (
        *("observations", "next_observations", "actions", "rewards", "masks"),
        *("dones", "end_of_trajectory", "terminated", "terminals", "terminations"),
        *("truncated", "truncates", "truncations"),
        *("info", "infos"),
    )
)
"""Keys of a transition that RLDS says otherwise; ``info`` is no part of it."""
STEP_KEYS = frozenset(
    ("observation", "action", "reward", "discount", "is_first", "is_last", "is_terminal")
)
WRITTEN_AS = "written_as"
"""Key of the metadata that says "steps" where steps came aligned, and were taken as they are."""
REPEATED = frozenset(("policy_version", "wall_time_ns", "monotonic_time_ns"))
"""Extra keys that the last step, which has no action, takes from the step before, as it does
texts; all others are zero there."""


@dataclass(frozen=True)
class Episode:
    """N transitions as N+1 steps.

    Attributes:
        steps: dicts with ``observation`` (a dict), ``action``, ``reward`` and ``discount``
            (float32, what the action brought), ``is_first``, ``is_last``, ``is_terminal``
            (bool), and the transitions' further keys. The last step has the last observation,
            and zeros for what only an action brings.
        ending: how it ended. ``is_terminal`` is True in the last step of a terminated one only.
        metadata: of the episode: a dict, nested, of numbers, texts and arrays.
        bare_observation: whether observations were bare arrays; they are
            ``{"state": array}`` here.
    """

    steps: list[dict[str, Any]]
    ending: Ending
    metadata: Mapping[str, Any] = field(default_factory=dict)
    bare_observation: bool = False

    def __len__(self) -> int:
        """Return the number of steps, one more than transitions."""
        return len(self.steps)

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return float(sum(float(step["reward"]) for step in self.steps))

    def transitions(self) -> list[dict[str, Any]]:
        """Return the N transitions.

        Returns:
            Dicts with ``observations``, ``actions``, ``next_observations``, ``rewards``,
            ``masks`` (the discount), ``dones`` (True at the last one, however it ended), and
            the further keys. Arrays are shared with the steps.
        """
        steps, last = self.steps, len(self.steps) - 2
        return [self._transition(steps[i], steps[i + 1], i == last) for i in range(last + 1)]

    def _transition(
        self, step: Mapping[str, Any], after: Mapping[str, Any], is_last: bool
    ) -> dict[str, Any]:
        return {
            "observations": self._observation(step),
            "actions": step["action"],
            "next_observations": self._observation(after),
            "rewards": step["reward"],
            "masks": step["discount"],
            "dones": np.bool_(is_last),
            **{key: value for key, value in step.items() if key not in STEP_KEYS},
        }

    def _observation(self, step: Mapping[str, Any]) -> Any:
        observation = step["observation"]
        return observation[STATE] if self.bare_observation else observation


def episode_from_transitions(
    transitions: Sequence[Mapping[str, Any]],
    ending: Ending,
    metadata: Mapping[str, Any] | None = None,
) -> Episode:
    """Return the episode that transitions make up.

    Args:
        transitions: one or more, each the successor of the one before: dicts with
            ``observations``, ``actions`` and ``next_observations``, of which only the last one's
            count; optional are ``rewards`` (0 without), ``masks`` (without them 1, and 0 at the
            last of a terminated episode), ``dones`` and the like, which ``ending`` replaces, and
            further keys, such as ``language_instruction``, ``is_intervention``,
            ``policy_version`` (None becomes -1), ``wall_time_ns`` and ``monotonic_time_ns``. A
            bare observation becomes ``{"state": observation}``, and a tuple a dict of "0", "1"…
        ending: ``terminated``, ``truncated`` or ``aborted``.
        metadata: of the episode.

    Returns:
        The episode. Arrays are shared with the transitions, not copied.

    Raises:
        SchemaMismatch: a transition lacks a key, or has one that RLDS uses for something else.
        ValueError: there is no transition, or no such ending.
    """
    if ending not in ENDINGS:
        raise ValueError(f"an episode cannot end {ending!r}: use one of {', '.join(ENDINGS)}")
    if not transitions:
        raise ValueError("an episode needs at least one transition")
    last = len(transitions) - 1
    steps = [_step(row, i, i == last, ending) for i, row in enumerate(transitions)]
    steps.append(_last_step(transitions[-1], steps[-1], ending, last + 1))
    bare = not isinstance(transitions[0]["observations"], Mapping | tuple)
    return Episode(steps, ending, dict(metadata or {}), bare)


def _step(row: Mapping[str, Any], number: int, is_last: bool, ending: Ending) -> dict[str, Any]:
    for key in ("observations", "actions", "next_observations"):
        if key not in row:
            raise SchemaMismatch(f"{number}/{key}", "missing from the transition")
    extras = {str(key): value for key, value in row.items() if key not in NOT_EXTRA}
    for key in extras.keys() & STEP_KEYS:
        raise SchemaMismatch(f"{number}/{key}", "a name that RLDS needs for itself")
    if extras.get("policy_version", 0) is None:
        extras["policy_version"] = -1
    ends = is_last and ending == "terminated"
    return {
        "observation": _observation(row["observations"]),
        "action": as_dicts(row["actions"]),
        "reward": _scalar(row.get("rewards", 0.0), number, "rewards"),
        "discount": _scalar(row.get("masks", 0.0 if ends else 1.0), number, "masks"),
        "is_first": number == 0,
        "is_last": False,
        "is_terminal": False,
        **{key: as_dicts(value) for key, value in extras.items()},
    }


def _last_step(
    row: Mapping[str, Any], before: Mapping[str, Any], ending: Ending, number: int
) -> dict[str, Any]:
    extras = {key: value for key, value in before.items() if key not in STEP_KEYS}
    return {
        "observation": _observation(row["next_observations"]),
        "action": _zeros(before["action"]),
        "reward": np.float32(0),
        "discount": np.float32(0),
        "is_first": False,
        "is_last": True,
        "is_terminal": ending == "terminated",
        **{key: v if key in REPEATED else _zeros(v) for key, v in extras.items()},
    }


def _observation(observation: Any) -> dict[str, Any]:
    found = as_dicts(observation)
    return found if isinstance(found, dict) else {STATE: found}


def as_dicts(tree: Any) -> Any:
    """Return a tree with dicts of text keys for all mappings and tuples."""
    if isinstance(tree, tuple):
        return {str(i): as_dicts(value) for i, value in enumerate(tree)}
    if isinstance(tree, Mapping):
        return {str(key): as_dicts(value) for key, value in tree.items()}
    return tree


def _zeros(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _zeros(inner) for key, inner in value.items()}
    try:
        array = np.asarray(value)
    except ValueError:  # ragged, which no dataset can hold, as its features will say
        return value
    return value if array.dtype.kind in "OSU" else np.zeros_like(array)


def _scalar(value: Any, number: int, key: str) -> Any:
    """Return a number, which may come as an array of one, as float32."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        reason = f"shape {array.shape} of {array.dtype}, where one number is needed"
        raise SchemaMismatch(f"{number}/{key}", reason)
    return np.float32(array.item())
