"""What a program reports, handed on: ``server.telemetry.on_report(TensorBoard("runs/1"))``."""

from __future__ import annotations

import itertools
import os
from typing import Any

from agentlace.errors import MissingExtra


class TensorBoard:
    """Writes what is reported as scalars into a folder that TensorBoard shows.

    Reports without a step are numbered by themselves. A context manager; thread-safe.

    Args:
        log_dir: the folder.
        flush_s: seconds after which what was reported is in the file at the latest.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str], flush_s: float = 10.0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboardX", "tensorboard") from error
        self._writer = SummaryWriter(os.fspath(log_dir), flush_secs=flush_s)
        self._steps = itertools.count()

    def __call__(self, values: dict[str, float], step: int | None = None) -> None:
        """Write one report."""
        number = next(self._steps) if step is None else step
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)

    def close(self) -> None:
        """Write what is left, and close the file. Idempotent."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        """Return the hook."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Wandb:
    """Logs what is reported into a run of Weights & Biases.

    Args:
        run: what ``wandb.init()`` returned; it stays the caller's to finish. W&B takes steps in
            ascending order only, and drops a report whose step is smaller than the last one.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)):
            raise TypeError(f"run is a {type(run).__name__}: pass what wandb.init() returned")
        self._run = run

    def __call__(self, values: dict[str, float], step: int | None = None) -> None:
        """Log one report."""
        self._run.log(dict(values), step=step)
