"""How a recorder works."""

from __future__ import annotations

from dataclasses import dataclass

from agentlace.config import BadSetting
from agentlace.rlds.images import ImageFormat


@dataclass(frozen=True)
class Settings:
    """What a recorder goes by.

    Attributes:
        version: of the dataset.
        image_format: ``png``, or ``jpeg`` (lossy); of a new dataset.
        abort_after_s: an actor that has shown no sign of life for so long is taken for gone, and
            its open episode ends as aborted.
        open_max_bytes: an open episode's transitions are held in memory up to this size per
            actor, and cut there; less if the broker keeps less of an actor's stream.
        commit_every_s: finished episodes become data so often.
    """

    version: str = "1.0.0"
    image_format: ImageFormat = "png"
    abort_after_s: float = 60.0
    open_max_bytes: int = 256 << 20
    commit_every_s: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("abort_after_s", "open_max_bytes", "commit_every_s"):
            if not getattr(self, name) > 0:
                raise BadSetting(name, str(getattr(self, name)), "must be positive")
