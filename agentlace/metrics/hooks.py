"""What a program reports, handed on: ``server.telemetry.on_report(TensorBoard("runs/1"))``."""

from __future__ import annotations

import itertools
import os
import threading
from typing import Any

from agentlace.errors import MissingExtra


class TensorBoard:
    """Writes what is reported as scalars into a folder that TensorBoard shows.

    A report without a step gets the one after the last. NaN and infinity are written as such. A
    context manager; thread-safe.

    Args:
        log_dir: the folder; several hooks may write into one.
        flush_s: seconds after which what was reported is in the file at the latest. All is when
            the node stops, or the program ends.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str], flush_s: float = 10.0) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise MissingExtra("tensorboardX", "tensorboard") from error
        self._new_writer = tensorboardX.SummaryWriter
        self._log_dir = os.fspath(log_dir)
        self._flush_s = flush_s
        self._lock = threading.Lock()
        self._writer: Any = None
        self._last_step = -1

    def __call__(self, values: dict[str, float], step: int | None = None) -> None:
        """Write one report."""
        with self._lock:
            self._last_step = self._last_step + 1 if step is None else int(step)
            if self._writer is None:
                self._writer = self._opened()
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._last_step)

    def _opened(self) -> Any:
        # Without a suffix, files that are begun within one second overwrite each other.
        suffix = f".{os.getpid()}.{next(_numbers)}"
        return self._new_writer(self._log_dir, flush_secs=self._flush_s, filename_suffix=suffix)

    def flush(self) -> None:
        """Write all that was reported; a report that follows begins a file of its own."""
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()

    close = flush

    def __enter__(self) -> TensorBoard:
        """Return the hook."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write all that was reported."""
        self.flush()


_numbers = itertools.count()


class Wandb:
    """Logs what is reported into a run of Weights & Biases.

    Args:
        run: what ``wandb.init()`` returned; it stays the caller's to finish. W&B takes steps in
            ascending order only: it leaves out a report whose step is smaller than the last one.

    Raises:
        TypeError: that is no run.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)):
            raise TypeError(f"run is a {type(run).__name__}: pass what wandb.init() returned")
        self._run = run

    def __call__(self, values: dict[str, float], step: int | None = None) -> None:
        """Log one report."""
        self._run.log(values, step=step)
