"""The page of guarantees names tests that exist, and states numbers that are in the code."""

import ast
import re
from pathlib import Path

import pytest

from agentlace.transport.durability import FORGETFUL_S
from agentlace.transport.held import HELD_MAX_BYTES
from benchmarks.backpressure import BROKER_BYTES, MIB, RETENTION_BYTES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def defined_in(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_named_test_exists(path, name):
    assert name.startswith("test_")
    assert name in defined_in(path), f"{path} has no {name}"


def test_every_promise_names_a_test():
    tables = re.findall(r"\| promise \| proved by \|\n\|---\|---\|\n((?:\|.*\|\n)+)", PAGE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) >= 25
    for row in rows:
        promise, proofs = row.strip("|").split("|")
        assert promise.strip() and re.search(r"`tests/[\w/]+\.py::test_\w+`", proofs), row


def test_stated_numbers_are_those_of_the_code():
    words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
    assert f"At most {HELD_MAX_BYTES // MIB} MiB are held" in PAGE
    assert f"{words[FORGETFUL_S]} seconds after it was confirmed" in PAGE
    assert f"{RETENTION_BYTES // MIB} MiB of retention" in PAGE
    assert f"a broker of {BROKER_BYTES // MIB} MiB" in PAGE


def test_its_picture_is_there():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).stat().st_size > 10_000
