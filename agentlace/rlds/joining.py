"""Joins small shards in the background, so that their number stays bounded."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import IO

from agentlace.errors import AgentlaceError
from agentlace.files import sync_folder
from agentlace.logs import about
from agentlace.rlds.folder import Folder
from agentlace.rlds.manifest import Manifest, shard_name
from agentlace.rlds.target import Target

log = logging.getLogger(__name__)

COPY_NBYTES = 4 << 20
"""Copied at a time; a writer that closes waits for one of them."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class _Stopped(Exception):
    """The writer closes."""


class Joiner:
    """Joins the small shards of a dataset that is written meanwhile.

    The next generation of shards is made in a folder of its own: shards that stay are linked,
    those that are joined are copied. The commit that names the new folder waits, and is waited
    for by, the writer's commits; shards that came meanwhile are linked then.

    Args:
        folder: of the dataset.
        lock: held by whoever commits.
        state: returns the manifest; called with the lock.
        adopt: is told the manifest that was committed; called with the lock.
        target: when a shard stays as it is.
        least: so many small shards are joined.
    """

    def __init__(
        self,
        folder: Folder,
        lock: Lock,
        state: Callable[[], Manifest],
        adopt: Callable[[Manifest], None],
        target: Target,
        least: int,
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._state = state
        self._adopt = adopt
        self._target = target
        self._least = least
        self._stop = Event()
        self._thread: Thread | None = None
        self._failed_at = 0

    def consider(self) -> None:
        """Begin to join in the background if it is worth it and nothing is being joined."""
        if self._thread is not None and self._thread.is_alive():
            return
        state = self._state()
        if len(state.sizes) >= 2 * self._failed_at and self._first(state) is not None:
            self._thread = Thread(target=self._in_background, name="agentlace-rlds-join")
            self._thread.start()

    def _first(self, state: Manifest, least: int | None = None) -> int | None:
        least = self._least if least is None else least
        return self._target.first_to_join(state.sizes, state.lengths, least)

    def _in_background(self) -> None:
        try:
            self.join(self._least)
        except _Stopped:
            log.debug("%s: closed before its shards were joined", self._folder.path)
        except (OSError, AgentlaceError) as error:
            # The dataset is whole all the same; try again when there are twice as many shards.
            self._failed_at = len(self._state().sizes)
            path, fields = self._folder.path, about(path=str(self._folder.path), error=error)
            log.warning("the shards of %s were not joined: %s", path, error, extra=fields)

    def join(self, least: int = 2) -> None:
        """Join the small shards, if there are so many; blocks until they are."""
        with self._lock:
            before = self._state()
        first = self._first(before, least)
        if first is None:
            return
        after = replace(before, generation=before.generation + 1)
        try:
            joined = self._copy(before, after, first)
            with self._lock:
                self._commit(before, joined)
        except BaseException:
            shutil.rmtree(self._folder.generation(after.generation), ignore_errors=True)
            raise
        self._failed_at = 0
        with self._lock:
            # From now on the time of the generation before runs out.
            os.utime(self._folder.generation(before.generation))
            self._folder.sweep(self._state())

    def _copy(self, before: Manifest, after: Manifest, first: int) -> Manifest:
        """Make the new generation, without shards that come from now on."""
        path = self._folder.generation(after.generation)
        shutil.rmtree(path, ignore_errors=True)
        self._folder.make_generation(path)
        self._link(before, after, range(first), 0)
        lengths, sizes = list(before.lengths[:first]), list(before.sizes[:first])
        at = first
        for count in self._target.groups(before.sizes[first:], before.lengths[first:]):
            parts = range(at, at + count)
            paths = [self._folder.shard(before, number) for number in parts]
            into = self._folder.shard(after, len(sizes))
            size = self._folder.join_shards(paths, into, self._copy_chunks)
            expected = sum(before.sizes[number] for number in parts)
            if size != expected:
                raise OSError(f"{into} has {size:,} bytes, not {expected:,}")
            lengths.append(sum(before.lengths[number] for number in parts))
            sizes.append(size)
            at += count
        return replace(after, lengths=tuple(lengths), sizes=tuple(sizes))

    def _commit(self, before: Manifest, joined: Manifest) -> None:
        """Add what came meanwhile, and make it the dataset's state."""
        now, done, known = self._state(), len(joined.sizes), len(before.sizes)
        new = replace(
            now,
            generation=joined.generation,
            lengths=joined.lengths + now.lengths[known:],
            sizes=joined.sizes + now.sizes[known:],
        )
        self._link(now, new, range(known, len(now.sizes)), done - known)
        sync_folder(self._folder.generation(new.generation))
        self._folder.commit(new)
        self._adopt(new)

    def _link(self, before: Manifest, after: Manifest, numbers: range, shift: int) -> None:
        path = self._folder.generation(after.generation)
        for number in numbers:
            source = self._folder.shard(before, number)
            target = path / shard_name(after.name, number + shift)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._folder.join_shards([source], target, self._copy_chunks)

    def _copy_chunks(self, source: IO[bytes], target: IO[bytes]) -> None:
        while chunk := source.read(COPY_NBYTES):
            if self._stop.is_set():
                raise _Stopped
            target.write(chunk)

    def wait(self) -> None:
        """Wait until nothing is being joined."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Give up what is being joined."""
        self._stop.set()
        self.wait()
