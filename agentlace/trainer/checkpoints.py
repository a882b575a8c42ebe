"""A trainer's checkpoints: one save or restore at a time, in the caller's thread or another."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from agentlace.errors import CheckpointError
from agentlace.logs import about
from agentlace.trainer.checkpointer import Checkpointer, Moment, Source
from agentlace.trainer.manifest import Manifest, Positions, SavedStore
from agentlace.trainer.saving import CheckpointPolicy, SavingThread
from agentlace.transport.weights import Version

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


class Stores(Protocol):
    """The stores that are saved."""

    def sources(self) -> dict[str, Source]:
        """Return all stores."""

    def commit(self, name: str, store: Any, positions: Positions) -> None:
        """Take note that a store's content up to these positions cannot be lost any more."""

    def take_over(self, name: str, saved: SavedStore) -> None:
        """Go on from where a restored store ends."""


class Networks(NamedTuple):
    """What is asked and told about the published networks.

    Attributes:
        newest: returns the version of the newest one.
        publish_after: lets all that are published from now on be newer than a version.
    """

    newest: Callable[[], Version]
    publish_after: Callable[[Version], None]


class Checkpoints:
    """Saves and restores a trainer. Thread-safe.

    Args:
        service: how the trainer is called, with its namespace.
        policy: where and when to save by itself, or only where; None for only when asked to.
        stores: what is saved.
        networks: whose newest version is saved.
        confirm: called before a checkpoint is replaced; raises if this trainer has a successor.
    """

    def __init__(
        self,
        service: str,
        policy: PathLike | CheckpointPolicy | None,
        stores: Stores,
        networks: Networks,
        confirm: Callable[[], object],
    ) -> None:
        if policy is not None and not isinstance(policy, CheckpointPolicy):
            policy = CheckpointPolicy(policy)
        self._service = service
        self._policy = policy
        self._stores = stores
        self._networks = networks
        self._confirm = confirm
        self._lock = threading.Lock()
        self._checkpointers: dict[Path, Checkpointer] = {}
        self._thread: SavingThread | None = None

    def covers(self, name: str) -> bool:
        """Whether a store is saved again and again, so that its streams must wait for that."""
        policy = self._policy
        return policy is not None and (policy.stores is None or name in policy.stores)

    def check(self) -> None:
        """Raise CheckpointError if what is to be saved by itself could not be."""
        if self._policy is not None:
            with self._lock:
                path, sources = self._path(None), self._chosen(None)
                stores = {name: source.store for name, source in sources.items()}
                self._checkpointer(path).check(stores)

    def start(self) -> None:
        """Save at the policy's interval, and on SIGTERM; called when this trainer is the one.

        Raises:
            CheckpointError: as :meth:`check`; its predecessor may have saved meanwhile.
        """
        self.check()
        if self._policy is not None and self._thread is None:
            self._thread = SavingThread(self.save, self._policy.every_s)
            self._thread.start()

    def stop(self) -> None:
        """Save no more by itself; a save that is running is finished. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
        with self._lock:  # one that nobody waits for
            pass

    def save(
        self,
        path: PathLike | None = None,
        extra: Any = None,
        stores: Sequence[str] | None = None,
        wait: bool = True,
    ) -> bool:
        """Save; see :meth:`TrainerServer.save`."""
        if extra is None and self._policy is not None and self._policy.extra is not None:
            extra = self._policy.extra()
        if not self._lock.acquire(blocking=wait):
            return False
        is_handed_on = False
        try:
            place, sources = self._path(path), self._chosen(stores)
            checkpointer = self._checkpointer(place)
            moment = checkpointer.begin(sources, self._networks.newest(), extra, copy=not wait)
            if wait:
                self._finish(place, checkpointer, moment, sources)
                return True
            arguments = (place, checkpointer, moment, sources)
            # Not a daemon: a program that ends meanwhile waits for it.
            threading.Thread(target=self._finish_alone, args=arguments, name="save").start()
            is_handed_on = True
            return True
        finally:
            if not is_handed_on:
                self._lock.release()

    def _finish_alone(self, path: Path, *rest: Any) -> None:
        try:
            self._finish(path, *rest)
        except Exception as error:
            fields = about(path=str(path), error=error)
            log.error("checkpoint %s was not saved: %s", path, error, extra=fields)
        finally:
            self._lock.release()

    def _finish(
        self, path: Path, checkpointer: Checkpointer, moment: Moment, sources: Mapping[str, Source]
    ) -> None:
        positions = checkpointer.finish(moment, self._confirm)
        if self._policy is not None and path == self._path(None):
            for name, at in positions.items():
                self._stores.commit(name, sources[name].store, at)

    def restore(self, path: PathLike | None, stores: Sequence[str] | None, previous: bool) -> Any:
        """Restore; see :meth:`TrainerServer.restore`."""
        with self._lock:
            place, sources = self._path(path), self._stores.sources()
            checkpointer = self._checkpointer(place)
            manifest = checkpointer.read(previous)
            if manifest is None:
                if path is not None or previous:
                    which = "previous checkpoint" if previous else "checkpoint"
                    raise CheckpointError(place, f"there is no {which} in this folder")
                log.info("no checkpoint in %s yet: beginning anew", place)
                return None
            names = self._to_restore(place, manifest, sources, stores)
            chosen = {name: sources[name].store for name in names}
            extra = checkpointer.fill(manifest, chosen, previous)
            for name in names:
                self._stores.take_over(name, manifest.stores[name])
            self._networks.publish_after(manifest.weights)
            log.info("restored %s: stores %s", place, names)
            return extra

    def _to_restore(
        self,
        path: Path,
        manifest: Manifest,
        sources: Mapping[str, Source],
        stores: Sequence[str] | None,
    ) -> list[str]:
        """Return the names of the stores to restore."""
        wanted = sorted(manifest.stores if stores is None else stores)
        absent = [name for name in wanted if name not in manifest.stores]
        if absent:
            raise CheckpointError(path, f"it has no stores {absent}, but {sorted(manifest.stores)}")
        unknown = [name for name in wanted if name not in sources]
        if unknown:
            raise CheckpointError(
                path,
                f"its stores {unknown} are not registered: call register_data_store() for them "
                "first, or choose with stores=[…]",
            )
        for name in sorted(sources.keys() - set(wanted)):
            fields = about(store=name, path=str(path))
            text = "store %r is not restored from %s and begins empty"
            log.warning(text, name, path, extra=fields)
        return wanted

    def _path(self, path: PathLike | None) -> Path:
        if path is not None:
            return Path(path).absolute()
        if self._policy is None:
            raise CheckpointError(
                "(none)", "give save() and restore() a path, or the server checkpoint=…"
            )
        return Path(self._policy.path).absolute()

    def _checkpointer(self, path: Path) -> Checkpointer:
        if path not in self._checkpointers:
            self._checkpointers[path] = Checkpointer(path, self._service)
        return self._checkpointers[path]

    def _chosen(self, stores: Sequence[str] | None) -> dict[str, Source]:
        """Return the stores to save."""
        sources = self._stores.sources()
        if stores is None and self._policy is not None:
            stores = self._policy.stores
        if stores is None:
            return sources
        unknown = [name for name in stores if name not in sources]
        if unknown:
            place = self._policy.path if self._policy else "(none)"
            raise CheckpointError(place, f"no stores {unknown}, but {sorted(sources)}")
        return {name: sources[name] for name in stores}
