"""Finished episodes go into the dataset, or into the quarantine beside it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.errors import Closed, MissingExtra, SchemaMismatch, StoreFull
from agentlace.logs import Refrain, about
from agentlace.recorder.episodes import Counts, Finished
from agentlace.recorder.quarantine import keep_aside
from agentlace.rlds.episode import Episode, episode_from_transitions
from agentlace.rlds.writer import DatasetWriter

log = logging.getLogger(__name__)

RECORDER = "recorder"
"""Key of ``episode_metadata`` under which the recorder says where an episode comes from."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Sink:
    """Takes finished episodes. Its owner holds a lock.

    Args:
        writer: of the dataset.
        quarantine: folder for what does not fit the dataset; made when it is needed.
    """

    def __init__(self, writer: DatasetWriter, quarantine: Path) -> None:
        self.writer = writer
        self.quarantine = quarantine
        self._refrain = Refrain()

    def take(self, store: str, actor: str, finished: Finished, counts: Counts) -> None:
        """Put an episode into the dataset with the next commit, and count what became of it.

        Raises:
            StoreFull: it has to be kept aside, and the disk is full.
            MissingExtra, Closed: the writer cannot write.
        """
        thread = finished.thread
        where = {
            "store": store,
            "actor": actor,
            "id": str(thread.id),
            "part": np.int64(thread.part),
            "reason": finished.reason,
        }
        try:
            self.writer.append(_episode(finished, {**thread.metadata, RECORDER: where}))
        except (MissingExtra, Closed):
            raise
        except Exception as error:  # whatever it is that does not fit: the run goes on
            counts.quarantined += 1
            self._keep_aside(where, finished, error)
            return
        counts.written += thread.part == 1
        counts.parts += 1
        counts.steps += len(finished.rows)

    def _keep_aside(self, where: Mapping[str, Any], finished: Finished, error: Exception) -> None:
        reason = str(error) if isinstance(error, SchemaMismatch) else f"{type(error)}: {error}"
        name = "{id}-{part}-{store}-{actor}".format_map(where)
        metadata = dict(finished.thread.metadata)
        known = {**where, "ending": finished.ending, "metadata": metadata}
        try:
            path = keep_aside(self.quarantine, name, finished.rows, reason, known)
        except OSError as failure:
            if failure.errno not in _FULL:
                raise
            raise StoreFull(f"no room for {self.quarantine} ({failure.strerror})") from failure
        self._refrain.say(
            log.error,
            (where["actor"], type(error)),
            "an episode of %d transitions of actor %r does not fit the dataset, and is in %s: %s",
            len(finished.rows),
            where["actor"],
            path,
            reason,
            extra=about(store=where["store"], peer=where["actor"], path=str(path), error=error),
        )


def _episode(finished: Finished, metadata: Mapping[str, Any]) -> Episode:
    for number, row in enumerate(finished.rows):
        if not isinstance(row, Mapping):
            raise SchemaMismatch(str(number), f"a {type(row).__name__} where a dict is needed")
    return episode_from_transitions(finished.rows, finished.ending, metadata)
