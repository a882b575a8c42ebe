"""What the steps and the metadata of a dataset's episodes hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentlace.errors import DecodeError, SchemaMismatch
from agentlace.rlds.episode import STATE, Episode, as_dicts
from agentlace.rlds.images import ImageFormat
from agentlace.rlds.leaf import Leaf, flat, leaf_from_json, leaf_of
from agentlace.rlds.spaces import example_of

ENDING = "ending"
OTHER = "other"
"""Keys of ``episode_metadata``: how it ended, and what it says beyond the features, as JSON."""
FIXED: Mapping[str, Any] = {
    "reward": np.zeros((), np.float32),
    "discount": np.zeros((), np.float32),
    "is_first": np.zeros((), np.bool_),
    "is_last": np.zeros((), np.bool_),
    "is_terminal": np.zeros((), np.bool_),
}
"""What every step has."""


@dataclass(frozen=True)
class Features:
    """What the episodes of one dataset hold; all of them the same.

    =====================================  =====================================================
    a leaf of a step                       in the dataset
    =====================================  =====================================================
    uint8 (…1, H, W, 1 | 3 | 4)            an image (H, W, channels), PNG or JPEG
    uint16, likewise                       a PNG image of 16 bits
    action, float, any shape               a flat float32 vector
    float64                                exact, as packed bytes
    more than 64 integers                  packed with zlib
    other numbers, bool                    a tensor
    str, bytes                             text
    =====================================  =====================================================

    ``episode_metadata`` has ``ending``, the entries of the first episode, and ``other``: JSON
    of what another episode says beyond or otherwise. Nothing of it keeps an episode out.

    Attributes:
        steps: leaves by their path, such as ``observation/wrist``.
        metadata: leaves of ``episode_metadata`` by their path, but for the two above.
        image_format: of images that can be had in it.
        bare_observation: whether observations were bare arrays; None if that is not known yet.
        is_complete: whether they tell all leaves; those from spaces know observation and
            action, and learn the rest from the first episode.
    """

    steps: Mapping[str, Leaf]
    metadata: Mapping[str, Leaf]
    image_format: ImageFormat = "png"
    bare_observation: bool | None = None
    is_complete: bool = True

    @classmethod
    def from_spaces(
        cls, observation_space: Any, action_space: Any, image_format: ImageFormat = "png"
    ) -> Features:
        """Return features with the observations and actions of Gymnasium spaces.

        Args:
            observation_space: a Box, Discrete, MultiBinary, MultiDiscrete or Text, or a Dict or
                Tuple of them.
            action_space: likewise.
            image_format: ``png`` or ``jpeg``.

        Raises:
            SchemaMismatch: a space without a fixed shape.
        """
        observation = as_dicts(example_of(observation_space, "observation"))
        bare = not isinstance(observation, dict)
        step = {
            "observation": {STATE: observation} if bare else observation,
            "action": as_dicts(example_of(action_space, "action")),
            **FIXED,
        }
        return cls(_leaves(step, image_format), {}, image_format, bare, is_complete=False)

    @classmethod
    def from_episode(cls, episode: Episode, image_format: ImageFormat = "png") -> Features:
        """Return the features of which an episode is an example.

        Raises:
            SchemaMismatch: it has values that a dataset cannot hold.
        """
        return cls({}, {}, image_format, None, is_complete=False).completed(episode)

    def completed(self, episode: Episode) -> Features:
        """Return these features with all that they do not tell yet, as an episode has it.

        Raises:
            SchemaMismatch: it has values that a dataset cannot hold.
        """
        if self.is_complete:
            return self
        found = _leaves({**episode.steps[0], **FIXED}, self.image_format)
        for path in found:
            if any(other.startswith(f"{path}/") for other in found):
                raise SchemaMismatch(path, "both a value and a dict of values")
        told = set(self.steps) - set(FIXED)
        extra = {p: leaf for p, leaf in found.items() if not told or not p.startswith(SPACES)}
        metadata = _metadata_leaves(episode.metadata)
        bare = episode.bare_observation if self.bare_observation is None else self.bare_observation
        return replace(
            self,
            steps={**extra, **self.steps},
            metadata=metadata,
            bare_observation=bare,
            is_complete=True,
        )

    def check_same(self, dataset: Features) -> None:
        """Compare with the features of a dataset, as far as these tell them.

        Raises:
            SchemaMismatch: they differ; names the first leaf.
        """
        if self.is_complete:
            for path in dataset.steps.keys() - self.steps.keys():
                raise SchemaMismatch(path, "is in the dataset, but not in the features given")
        for path, leaf in self.steps.items():
            theirs = dataset.steps.get(path)
            if theirs is None:
                raise SchemaMismatch(path, "is in the features given, but not in the dataset")
            if theirs != leaf:
                both = f"{leaf.dtype} {leaf.shape} {leaf.encoding}, the dataset has"
                reason = f"{both} {theirs.dtype} {theirs.shape} {theirs.encoding}"
                raise SchemaMismatch(path, reason)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` takes."""
        return {
            "image_format": self.image_format,
            "bare_observation": self.bare_observation,
            "steps": {path: leaf.to_json() for path, leaf in self.steps.items()},
            "metadata": {path: leaf.to_json() for path, leaf in self.metadata.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Features:
        """Return the features that :meth:`to_json` described.

        Raises:
            DecodeError: they are no such description.
        """
        try:
            return cls(
                {path: leaf_from_json(path, leaf) for path, leaf in values["steps"].items()},
                {path: leaf_from_json(path, leaf) for path, leaf in values["metadata"].items()},
                values["image_format"],
                values["bare_observation"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DecodeError(f"not a description of features: {error}") from error


SPACES = ("observation/", "action")
"""What paths begin with that spaces tell."""


def _leaves(step: Mapping[str, Any], image_format: ImageFormat) -> dict[str, Leaf]:
    return {path: leaf_of(value, path, image_format) for path, value in flat(step).items()}


def _metadata_leaves(metadata: Mapping[str, Any]) -> dict[str, Leaf]:
    """Return the leaves of metadata that a dataset can hold; the rest goes to ``other``."""
    found: dict[str, Leaf] = {}
    for key, value in metadata.items():
        try:
            leaves = flat({key: as_dicts(value)})
            kinds = {path: leaf_of(leaf, path, "png") for path, leaf in leaves.items()}
        except SchemaMismatch:
            continue
        if key not in (ENDING, OTHER) and not any(k.kind == "image" for k in kinds.values()):
            found.update(kinds)
    return found
