"""What a dataset may be called, and other settings with which nothing can be written."""

from __future__ import annotations

import re
from typing import get_args

from agentlace.config import BadSetting
from agentlace.rlds.images import ImageFormat
from agentlace.rlds.target import Target

_NAME = re.compile(r"[a-zA-Z]\w*", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def check_settings(
    name: str, version: str, image_format: str, target: Target, join_after: int
) -> None:
    """Look at the settings of a writer.

    Raises:
        BadSetting: one of them cannot be.
    """
    if not _NAME.fullmatch(name):
        raise BadSetting("name", name, "TFDS wants a letter, then letters, digits, underscores")
    if not _VERSION.fullmatch(version):
        raise BadSetting("version", version, 'TFDS wants three numbers, such as "1.0.0"')
    if image_format not in get_args(ImageFormat):
        raise BadSetting("image_format", image_format, "use png or jpeg")
    if target.nbytes < 1:
        raise BadSetting("shard_nbytes", target.nbytes, "must be positive")
    if target.episodes is not None and target.episodes < 1:
        raise BadSetting("shard_episodes", target.episodes, "must be positive")
    if join_after < 2:
        raise BadSetting("join_after", join_after, "must be 2 or more")
