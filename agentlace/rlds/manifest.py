"""``dataset_info.json``: what a dataset holds, for TFDS, and how far its source was read.

Both in one file, so that renaming it into place is the commit. TFDS knows no field of a user's
own and refuses unknown ones; among those that it has, ``releaseNotes`` is a map of texts that it
only shows, and ours is the text called :data:`NOTE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentlace.errors import DecodeError
from agentlace.rlds.features import Features

FILE = "dataset_info.json"
SPLIT = "train"
NOTE = "agentlace"
FORMAT = 1
"""Of the note; a later one that older versions cannot go on with counts up."""
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


@dataclass(frozen=True)
class Manifest:
    """The state of a dataset at one commit.

    Attributes:
        name: of the dataset.
        version: of the dataset.
        features: None before the first episode.
        generation: number of the folder that holds the shards.
        lengths: episodes of each shard.
        sizes: bytes of each shard's file.
        nbytes: of the records, without their frames in the files.
        steps: of all episodes.
        number: counts the commits.
        cursor: of the last commit that came with one.
    """

    name: str
    version: str
    features: Features | None = None
    generation: int = 0
    lengths: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    nbytes: int = 0
    steps: int = 0
    number: int = 0
    cursor: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What tells this state from all others of the dataset."""
        return self.number, self.generation

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return sum(self.lengths)

    def to_bytes(self) -> bytes:
        """Return the file's content.

        Raises:
            TypeError: the cursor has values that JSON does not know.
        """
        note = {
            "format": FORMAT,
            "number": self.number,
            "cursor": self.cursor,
            "generation": self.generation,
            "sizes": self.sizes,
            "steps": self.steps,
            "features": None if self.features is None else self.features.to_json(),
        }
        split = {
            "name": SPLIT,
            "shardLengths": [str(length) for length in self.lengths],
            "numBytes": str(self.nbytes),
            "filepathTemplate": f"{folder_name(self.generation)}/{TEMPLATE}",
        }
        info = {
            "name": self.name,
            "version": self.version,
            "fileFormat": "tfrecord",
            "description": "Episodes recorded by agentlace.",
            "releaseNotes": {NOTE: json.dumps(note)},
            "splits": [split] if self.lengths else [],
        }
        return json.dumps(info, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Return the state that a file's content tells.

        Raises:
            DecodeError: agentlace did not write it, or it is damaged.
        """
        try:
            info = json.loads(content)
            text = info.get("releaseNotes", {}).get(NOTE)
            if text is None:
                raise DecodeError("agentlace did not write this dataset, and cannot go on with it")
            note = json.loads(text)
            if note["format"] != FORMAT:
                raise DecodeError("a later version of agentlace wrote this dataset")
            return _manifest(info, note)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"{FILE} is damaged: {type(error).__name__} {error}") from error


def _manifest(info: Mapping[str, Any], note: Mapping[str, Any]) -> Manifest:
    split = info["splits"][0] if info["splits"] else {}
    features = note["features"]
    return Manifest(
        info["name"],
        info["version"],
        None if features is None else Features.from_json(features),
        note["generation"],
        tuple(int(length) for length in split.get("shardLengths", ())),
        tuple(note["sizes"]),
        int(split.get("numBytes", 0)),
        note["steps"],
        note["number"],
        note["cursor"],
    )


def folder_name(generation: int) -> str:
    """Return the name of the folder that holds a generation's shards."""
    return f"shards-{generation:06}"


def shard_name(name: str, number: int) -> str:
    """Return the name of a shard's file, as TFDS forms it from the template."""
    return f"{name}-{SPLIT}.tfrecord-{number:05}"
