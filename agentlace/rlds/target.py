"""When a file of records is large enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """When a shard is large enough to stay as it is.

    Attributes:
        nbytes: of its file; a joined one has so many or more.
        episodes: that it may have at most; None for any number.
    """

    nbytes: int
    episodes: int | None = None

    def groups(self, sizes: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """Return how many consecutive parts each shard gets.

        Args:
            sizes: of the parts, in bytes.
            lengths: of the parts, in episodes.
        """
        counts, size, length = [0], 0, 0
        for more, episodes in zip(sizes, lengths, strict=True):
            if counts[-1] and (size >= self.nbytes or self._exceeds(length + episodes)):
                counts.append(0)
                size = length = 0
            counts[-1] += 1
            size, length = size + more, length + episodes
        return counts

    def first_to_join(self, sizes: Sequence[int], lengths: Sequence[int], least: int) -> int | None:
        """Return the shard from which on all are joined, None if that is not worth it.

        It is if it leaves half of them, or fewer.

        A shard is left alone if it is large enough, or larger than all after it together. So
        each byte is copied no more often than its file's size doubles, and of shards that are
        left alone though they are small there are no more than doublings.

        Args:
            sizes: of the shards, in bytes.
            lengths: of the shards, in episodes.
            least: so many must be joined.
        """
        begin = len(sizes)
        while begin > 0 and not self._is_large(sizes[begin - 1], lengths[begin - 1]):
            begin -= 1
        rest = sum(sizes[begin:])
        while begin < len(sizes) and sizes[begin] > rest - sizes[begin]:
            rest -= sizes[begin]
            begin += 1
        n = len(sizes) - begin
        if n < least or 2 * len(self.groups(sizes[begin:], lengths[begin:])) > n:
            return None
        return begin

    def _is_large(self, size: int, length: int) -> bool:
        return size >= self.nbytes or self._exceeds(length + 1)

    def _exceeds(self, episodes: int) -> bool:
        return self.episodes is not None and episodes > self.episodes
