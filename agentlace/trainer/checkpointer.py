"""Saves what a trainer holds into a folder, and brings it back."""

from __future__ import annotations

import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from agentlace import codec
from agentlace.data.archive import remove_unfinished, replace_file
from agentlace.data.own_files import OwnFiles, can_save_itself
from agentlace.data.row_files import RowFiles
from agentlace.data.sampled_store import SampledStore
from agentlace.errors import AgentlaceError, CheckpointError
from agentlace.logs import about
from agentlace.trainer.manifest import CheckpointFolder, Manifest, Positions, SavedStore
from agentlace.transport.weights import Version

log = logging.getLogger(__name__)

EXTRA = "extra"
HOLD_TIMEOUT_S = 30.0
"""So long a save waits for a chunk that is being inserted."""

Files = RowFiles | OwnFiles
ExtraFrames = list[codec.Frame]


class Source(NamedTuple):
    """A store as its consumer fills it.

    Attributes:
        store: the store.
        hold: keeps the consumer between two chunks; raises TimeoutError after so many seconds.
        positions: the last applied ID per actor; moves.
        counters: returns the consumer's counters.
    """

    store: Any
    hold: Callable[[float], AbstractContextManager[None]]
    positions: Positions
    counters: Callable[[], dict[str, int]]


class Cut(NamedTuple):
    """One store at the moment that is saved."""

    files: Files
    cut: Any
    positions: Positions
    counters: dict[str, int]


class Moment(NamedTuple):
    """All that is to be saved, fixed; what happens afterwards does not get into it."""

    cuts: dict[str, Cut]
    weights: Version
    extra: ExtraFrames | None
    is_split: bool


class Checkpointer:
    """Saves into one folder, and restores from it. Not thread-safe: its owner holds a lock.

    Args:
        path: of the folder; made if it is missing.
        service: whose streams the positions belong to.
    """

    def __init__(self, path: str | os.PathLike[str], service: str) -> None:
        self._folder = CheckpointFolder(path)
        self._service = service
        self._files: dict[str, tuple[Any, Files]] = {}
        self._last: Manifest | None = None

    # -- saving ------------------------------------------------------------------------------------

    def check(self, stores: Mapping[str, Any]) -> None:
        """Raise what would forbid to save these stores into this folder.

        Raises:
            CheckpointError: a store cannot be saved, or the folder is another's.
        """
        with self._folder.locked():
            self._folder.check_mine()
        for name, store in stores.items():
            self._files_of(name, store)

    def begin(
        self, sources: Mapping[str, Source], weights: Version, extra: Any, copy: bool
    ) -> Moment:
        """Fix what is to be saved. Each store's insertions wait for its own cut.

        Args:
            sources: the stores.
            weights: the version of the network that was published last.
            extra: a tree to keep with them; None for that of the save before.
            copy: whether the tree may change before :meth:`finish`.

        Raises:
            CheckpointError: a store cannot be saved.
            EncodeError: a value in the tree may not be saved.
        """
        self.check({name: source.store for name, source in sources.items()})
        frames, is_split = _encoded(extra)
        if copy and frames is not None:
            frames = [codec.Frame([frame.copy()], frame.nbytes) for frame in frames]
        self._folder.path.mkdir(parents=True, exist_ok=True)
        cuts = {name: self._cut(name, source) for name, source in sources.items()}
        return Moment(cuts, weights, frames, is_split)

    def _cut(self, name: str, source: Source) -> Cut:
        files = self._files_of(name, source.store)
        try:
            with source.hold(HOLD_TIMEOUT_S):
                return Cut(files, files.cut(), dict(source.positions), source.counters())
        except TimeoutError as error:
            raise CheckpointError(self._folder.path, f"store {name!r}: {error}") from error

    def _files_of(self, name: str, store: Any) -> Files:
        known, files = self._files.get(name, (None, None))
        if files is None or known is not store:
            files = self._make_files(name, store)
            self._files[name] = store, files
        return files

    def _make_files(self, name: str, store: Any) -> Files:
        folder = self._folder.of_store(name)
        if can_save_itself(store):
            return OwnFiles(folder, store)
        if isinstance(store, SampledStore):
            return RowFiles(folder, store)
        raise CheckpointError(
            self._folder.path,
            f"store {name!r} is a {type(store).__name__}, of which only its program knows how to "
            "save it: give it save_to(folder) and load_from(folder), or leave it out with "
            "stores=[…]",
        )

    def finish(self, moment: Moment, confirm: Callable[[], object]) -> dict[str, Positions]:
        """Write what was fixed, and make it the newest checkpoint.

        Args:
            moment: what :meth:`begin` returned.
            confirm: called last; raises if this trainer may not save any more.

        Returns:
            Per store the positions of which nothing can be lost any more.

        Raises:
            CheckpointError: another process has saved here meanwhile.
            OSError: the disk is full, or the like.
        """
        number, written, stores = uuid.uuid4().hex, 0, {}
        for name, cut in moment.cuts.items():
            record, nbytes = cut.files.write(cut.cut)
            stores[name] = SavedStore(record, cut.positions, cut.counters)
            written += nbytes
        extra, is_split = self._write_extra(number, moment)
        manifest = Manifest(
            number, self._service, time.time(), moment.weights, stores, extra, is_split
        )
        with self._folder.locked():
            confirm()
            self._folder.commit(manifest)
        self._last = manifest
        for name, saved in stores.items():
            moment.cuts[name].files.adopt(saved.record)
        try:
            self._sweep()
        except OSError as error:  # the checkpoint is there all the same
            text, path = "files of earlier checkpoints in %s stay: %s", self._folder.path
            log.warning(text, path, error, extra=about(path=str(path), error=error))
        log.info("saved %s: %.1f MB new", self._folder.path, written / 1e6)
        return {name: saved.positions for name, saved in stores.items()}

    def _write_extra(self, number: str, moment: Moment) -> tuple[list[dict[str, Any]] | None, bool]:
        if moment.extra is None:
            last = self._last
            return (None, False) if last is None else (last.extra, last.is_split)
        frames = enumerate(moment.extra)
        return [self._write(f"extra-{number}-{i}.frame", f) for i, f in frames], moment.is_split

    def _write(self, name: str, frame: codec.Frame) -> dict[str, Any]:
        crc = 0
        for part in frame.parts:
            crc = zlib.crc32(part, crc)
        replace_file(self._folder.path / name, lambda file: file.writelines(frame.parts))
        return {"file": name, "nbytes": frame.nbytes, "crc": crc}

    def _sweep(self) -> None:
        """Remove files that no manifest names; those of unfinished saves among them."""
        kept = self._folder.kept()
        named = {file["file"] for manifest in kept for file in manifest.extra or ()}
        for path in self._folder.path.glob("extra-*.frame"):
            if path.name not in named:
                path.unlink()
        remove_unfinished(self._folder.path)
        for name, (_, files) in self._files.items():
            files.sweep([m.stores[name].record for m in kept if name in m.stores])

    # -- restoring ---------------------------------------------------------------------------------

    def read(self, previous: bool = False) -> Manifest | None:
        """Return a whole checkpoint of this service; None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another service.
        """
        manifest = self._folder.read(previous)
        if manifest is None:
            return None
        if manifest.service != self._service:
            raise CheckpointError(
                self._folder.path,
                f"it is of {manifest.service}, this is {self._service}: its positions belong to "
                "other streams",
            )
        self._folder.verify(manifest, previous)
        return manifest

    def fill(self, manifest: Manifest, stores: Mapping[str, Any], previous: bool) -> Any:
        """Fill empty stores, and return the tree that was kept with them.

        Raises:
            CheckpointError: a store is not empty, of another kind, or its rows do not fit.
        """
        path = self._folder.path
        files = {name: self._files_of(name, store) for name, store in stores.items()}
        try:
            for name in stores:
                files[name].check(manifest.stores[name].record)
        except ValueError as error:
            raise CheckpointError(path, f"store {name!r}: {error}") from error
        try:
            for name in stores:
                files[name].fill(manifest.stores[name].record)
        except (AgentlaceError, OSError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                path,
                f"store {name!r} does not take what was saved, and holds a part of it: {error}",
            ) from error
        extra = self._read_extra(manifest)
        self._folder.go_on(previous)
        self._last = manifest
        return extra

    def _read_extra(self, manifest: Manifest) -> Any:
        if manifest.extra is None:
            return None
        paths = [self._folder.path / file["file"] for file in manifest.extra]
        trees = [codec.decode(bytearray(path.read_bytes()), EXTRA).tree for path in paths]
        if not manifest.is_split:
            return trees[0]
        return {key: value for tree in trees for key, value in tree.items()}


def _encoded(tree: Any) -> tuple[ExtraFrames | None, bool]:
    """Return a tree's frames: of a dict one per entry, since a frame has a bound."""
    if tree is None:
        return None, False
    if type(tree) is dict:
        return [codec.encode({key: value}, EXTRA) for key, value in tree.items()], True
    return [codec.encode(tree, EXTRA)], False
