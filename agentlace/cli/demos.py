"""``agentlace demos``: files of demonstrations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from agentlace.cli.pickled import PickledArray, read_pickled
from agentlace.cli.progress import shown
from agentlace.config import BadSetting
from agentlace.data.columns import Array
from agentlace.data.demos import save_columns
from agentlace.errors import AgentlaceError, DecodeError
from agentlace.progress import Advance, counted

MAX_BYTES = 16 * 2**30
"""Of all arrays; one may be in many transitions, but is in the file only once."""
MAX_LEAVES = 20_000_000
MAX_DEPTH = 16
WARNING = (
    "warning: a pickle can run code when it is read; here it may only hold numpy arrays and plain "
    "values, and is refused if it names anything else"
)
INFOS = ("info", "infos")
"""What an environment tells beside a transition; never converted."""
NAME = re.compile(r"\w[\w .:+-]*")

app = typer.Typer(help="Work with files of demonstrations.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``convert`` a command, though it is the only one."""


@app.command("convert")
def convert(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.pkl", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.npz if it exists.")] = False,
) -> None:
    """Convert pickled lists of transitions to a file that load_demos reads.

    Nothing in them is executed. What is not an array or a number in all transitions is left out,
    and so are infos.
    """
    if out.suffix != ".npz":
        raise BadSetting("OUT.npz", str(out), "the last file is written, and must end in .npz")
    if out.exists() and not force:
        raise AgentlaceError(f"{out} exists: pass --force to replace it")
    typer.echo(WARNING, err=True)
    with shown("reading", len(files), "files") as advance:
        rows = [row for file in counted(files, advance) for row in _transitions(file)]
    with shown("converting", len(rows), "transitions") as advance:
        columns, left_out = columns_of(rows, advance)
    for path, reason in left_out.items():
        typer.echo(f"left out {path}: {reason}")
    if not columns:
        raise DecodeError("nothing is left to write")
    with shown(f"writing {out}", len(columns), "columns") as advance:
        stacked = ((path, np.stack(values)) for path, values in columns.items())
        save_columns(out, counted(stacked, advance))
    typer.echo(f"{len(rows):,} transitions in {out}")
    for path, values in columns.items():
        dtype = np.result_type(*{value.dtype for value in values})
        typer.echo(f"  {path} {values[0].shape} {dtype}")


def _transitions(file: Path) -> list[dict[Any, Any]]:
    rows = read_pickled(file)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DecodeError(f"{file} does not hold a list of transitions, which are dicts")
    return rows


def columns_of(
    rows: list[dict[Any, Any]], advance: Advance = lambda n: None
) -> tuple[dict[str, list[Array]], dict[str, str]]:
    """Return each leaf's values in all transitions, and why which leaves are left out.

    Raises:
        DecodeError: there are more leaves or bytes than anyone demonstrates.
    """
    found: dict[str, list[Array]] = {}
    leaves = size = 0
    for row in counted(rows, advance):
        for path, leaf in _leaves({key: row[key] for key in row if key not in INFOS}):
            values, value = found.setdefault(path, []), _number(leaf)
            if value is not None:
                values.append(value)
                size += value.nbytes
            leaves += 1
            if leaves > MAX_LEAVES or size > MAX_BYTES:
                limits = f"{MAX_LEAVES:,} leaves or {MAX_BYTES:,} bytes"
                raise DecodeError(f"the transitions have more than {limits}: convert fewer at once")
    left_out = {key: "no part of a transition" for key in INFOS if any(key in row for row in rows)}
    for path, values in list(found.items()):
        if reason := _unfit(values, len(rows)):
            left_out[path] = reason
            del found[path]
    return found, left_out


def _unfit(values: list[Array], n: int) -> str:
    """Return why this cannot be a column, nothing if it can."""
    if len(values) < n:
        return f"not an array or a number in {n - len(values):,} of {n:,} transitions"
    shapes = {value.shape for value in values}
    some = " and ".join(map(str, sorted(shapes)[:2]))
    return f"shapes differ, such as {some}" if len(shapes) > 1 else ""


def _leaves(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path; None where a key cannot be part of one."""
    if depth > MAX_DEPTH:
        raise DecodeError(f"{path[:80]}… is more than {MAX_DEPTH} dicts deep")
    for key, value in tree.items():
        named = isinstance(key, str) and NAME.fullmatch(key)
        below = f"{path}/{key if named else repr(key)}".lstrip("/")
        if isinstance(value, dict) and named:
            yield from _leaves(value, below, depth + 1)
        else:
            yield below, value if named else None


def _number(leaf: Any) -> Array | None:
    """Return a leaf as an array, None if it is anything but numbers."""
    if isinstance(leaf, PickledArray):
        return leaf.value
    if not isinstance(leaf, bool | int | float | complex):
        return None
    array = np.asarray(leaf)
    return array if array.dtype.kind in "biufc" else None  # an int may be too large
