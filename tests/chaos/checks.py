"""What must hold after whatever has happened; each reads the files that the nodes have written."""

import itertools
import sqlite3

from .proxy import wait_until
from .system import ACTORS

SLACK_S = 0.1
"""Between a deadline's check and the handler's own look at the clock, on a busy machine."""


def lines(directory, name):
    """Return the whole lines of a journal; the last one may have been cut off."""
    path = directory / name
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]


def acknowledged(directory):
    """Return the last acknowledged row of each life of each actor."""
    found = {}
    for actor in range(len(ACTORS)):
        for life, n in lines(directory, f"actor{actor}.acknowledged"):
            found[actor, int(life)] = int(n)
    return {key: n for key, n in found.items() if n >= 0}


def by_life(rows):
    """Return the rows of each life of each actor, and check that lives do not mix."""
    found, last = {}, {}
    for actor, life, n in rows:
        assert life >= last.get(actor, 0), f"actor {actor}: life {life} after {last[actor]}"
        last[actor] = life
        found.setdefault((actor, life), []).append(n)
    return found


def recorded(directory):
    db = sqlite3.connect(directory / "dataset.sqlite")
    try:
        return db.execute("SELECT actor, life, n FROM rows ORDER BY rowid").fetchall()
    finally:
        db.close()


def trained(directory):
    """Return the rows of the trainer's last life."""
    life = len(lines(directory, "trainer.lives")) - 1
    rows = lines(directory, f"trainer.{life}.rows")
    return [tuple(map(int, row)) for row in rows]


def check_rows(rows, expected, is_whole):
    """Every acknowledged row exactly once and in order per actor.

    Args:
        rows: of one store.
        expected: what was acknowledged.
        is_whole: whether the store was there from the beginning; else it may begin later, with
            what the streams still held.
    """
    found = by_life(rows)
    newest = max(found, default=None)
    for (actor, life), last in expected.items():
        numbers = found.get((actor, life), [])
        first = 0 if is_whole or not numbers else numbers[0]
        who = f"actor {actor}, life {life}"
        assert numbers == list(range(first, first + len(numbers))), f"{who}: {odd(numbers)}"
        if is_whole or numbers or (actor, life) == newest:
            assert numbers and numbers[-1] >= last, f"{who}: {last} missing after {numbers[-1:]}"


def odd(numbers):
    """Say where a sequence is not one."""
    return [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1][:5]


def check_transitions(directory, is_trimmed):
    expected = acknowledged(directory)
    assert expected, "nothing was acknowledged at all"

    def is_complete(rows):
        found = {(actor, life): n for actor, life, n in rows}
        newest = {actor: max(life for a, life in expected if a == actor) for actor, _ in expected}
        return all(found.get(key, -1) >= expected[key] for key in newest.items())

    wait_until(lambda: is_complete(recorded(directory)), "the recorder's last rows")
    wait_until(lambda: is_complete(trained(directory)), "the trainer's last rows")
    check_rows(recorded(directory), expected, is_whole=True)
    check_rows(trained(directory), expected, is_whole=not is_trimmed)
    for life in range(len(lines(directory, "trainer.lives"))):
        rows = lines(directory, f"trainer.{life}.rows")
        check_rows([tuple(map(int, row)) for row in rows], {}, is_whole=False)


def check_networks(directory):
    """Networks never go backwards and never come twice; the newest arrives everywhere."""
    newest = lines(directory, "trainer.published")[-1]
    for actor in range(len(ACTORS)):
        name = f"actor{actor}.networks"
        wait_until(
            lambda name=name: lines(directory, name)[-1:][0][1:] == newest, f"{name}: {newest}"
        )
        seen = {}
        for life, *version in lines(directory, name):
            seen.setdefault(life, []).append(tuple(map(int, version)))
        for versions in seen.values():
            assert versions == sorted(set(versions)), versions


def check_acts(directory):
    """No act is executed twice, none after its deadline; what was said of them is true."""
    calls = {}
    for actor in range(len(ACTORS)):
        for name, end, error_ms, replied, started in lines(directory, f"actor{actor}.acts"):
            calls[name] = (float(end), float(error_ms), replied == "True", started)
    executed = [row[0] for row in lines(directory, "robot.executed")]
    assert executed, "no act was executed at all"
    assert len(executed) == len(set(executed)), sorted(n for n in executed if executed.count(n) > 1)
    for name, at, error_ms, _ in lines(directory, "robot.executed"):
        if name in calls:  # else its caller was killed while it waited
            end, own_error_ms, _, started = calls[name]
            late_s = float(at) - end
            assert late_s <= (own_error_ms + float(error_ms)) / 1000 + SLACK_S, (name, late_s)
            assert started != "False", f"{name} was executed, and its caller told otherwise"
    for name, (*_, replied, _) in calls.items():
        assert not replied or name in executed, f"{name} was answered and not executed"
