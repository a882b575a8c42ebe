"""What the examples show and leave behind: a progress line, summary.json and returns.csv."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINE_INTERVAL_S = 5.0
RATE_WINDOW_S = 5.0
FINAL_EPISODES = 10


class Progress:
    """One line per role, redrawn in place on a terminal, else printed every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        self._printed: dict[str, float] = {}
        self._live = _live_display() if sys.stdout.isatty() else None
        self._closed = False

    def show(self, role: str, text: str) -> None:
        """Show `text` as the present state of `role`."""
        with self._lock:
            if self._closed:
                return
            self._texts[role] = f"{role}: {text}"
            now = time.monotonic()
            if self._live is not None:
                self._live.update("\n".join(self._texts.values()))
            elif now - self._printed.get(role, -LINE_INTERVAL_S) >= LINE_INTERVAL_S:
                self._printed[role] = now
                print(self._texts[role], flush=True)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        with self._lock:
            if self._live is not None and not self._closed:
                self._live.stop()
            self._closed = True


def _live_display() -> Any:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    live = Live(console=Console(markup=False, highlight=False))
    live.start()
    return live


class Rate:
    """How fast a counter grows, per second, over the last few seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def __call__(self, count: int) -> float:
        """Note the counter's present value and return its rate."""
        self._marks.append((time.monotonic(), count))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.popleft()
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(now - then, 1e-9)


def final_return(returns: Sequence[float]) -> float | None:
    """Return the mean of the last ten episodes, None before the first has ended."""
    last = returns[-FINAL_EPISODES:]
    return round(sum(last) / len(last), 1) if last else None


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Print the summary as one line of JSON, and keep it as `summary.json`."""
    line = json.dumps(summary)
    _write(run_dir / "summary.json", line + "\n")
    print(line, flush=True)


def write_returns(run_dir: Path, curve: Sequence[tuple[int, float]]) -> None:
    """Keep each episode's last environment step and return, as `returns.csv`."""
    rows = "".join(f"{step},{value}\n" for step, value in curve)
    _write(run_dir / "returns.csv", "step,return\n" + rows)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    os.replace(draft, path)
