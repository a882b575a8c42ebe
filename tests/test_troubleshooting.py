"""docs/troubleshooting.md describes what there is."""

import itertools
import re
from pathlib import Path

from agentlace.cli import FAILED, INTERRUPTED, MISUSED
from agentlace.cli.bench_rows import MAX_TRANSITION_BYTES, ROOM_BYTES
from agentlace.cli.rlds_export import INCOMPLETE
from agentlace.operating.doctor import CHECKS
from agentlace.operating.doctor.servers import PUBSUB

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()


def table(heading):
    """Return the rows of the table with this heading, cell by cell."""
    rows = PAGE.partition(f"| {heading} |")[2].splitlines()[2:]
    rows = itertools.takewhile(lambda row: row.startswith("|"), rows)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_every_check_has_its_rows():
    names = [row[0] for row in table("check") if row[0]]
    assert names == [check.name for check in CHECKS]
    assert all(len(row) == 4 for row in table("check"))


def test_every_exit_status_is_there():
    statuses = [int(row[0]) for row in table("exit status")]
    assert statuses == [0, FAILED, MISUSED, INCOMPLETE, INTERRUPTED]


def test_numbers_are_those_of_the_code():
    assert f"'{PUBSUB}'" in PAGE
    assert f"at most {MAX_TRANSITION_BYTES >> 20} MiB in its stream" in PAGE
    assert f"less than {ROOM_BYTES / 1e6:.0f} MB of room" in PAGE


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w.-]+\.md)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / target).exists(), target
