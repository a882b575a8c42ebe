"""``python -m benchmarks``: run rows, write their results, and report on them."""

import argparse
import json
import logging
import sys
from pathlib import Path

from benchmarks import machine, report, summary
from benchmarks.harness import run_row
from benchmarks.rows import ALL
from benchmarks.stage import without_our_environment

FOLDER = Path(__file__).resolve().parent
RESULTS, DOCS = FOLDER / "results", FOLDER.parent / "docs"


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--only", action="append", metavar="ROW", help="run this row (repeatable)")
    parser.add_argument("--quick", action="store_true", help="few rounds: does everything run?")
    parser.add_argument("--install", action="store_true", help="make the peers' environments")
    parser.add_argument("--results", type=Path, help="folder of the results")
    parser.add_argument(
        "--report", action="store_true", help="run nothing: write the page from the results"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    options = parser.parse_args(arguments)
    if options.results is None:  # a quick run must not pass for a result
        options.results = RESULTS / "tmp" if options.quick else RESULTS
    for name in options.only or ():
        if name not in ALL:
            parser.error(f"no row {name!r}: use one of {', '.join(ALL)}")
    return options


def main(arguments=None):
    """Run what the command line asks for; returns the exit status."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.list:
        print("\n".join(f"{row.name:16} {row.title}" for row in ALL.values()))
        return 0
    if options.report:
        return _report(options.results, options.docs)
    without_our_environment()
    options.results.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.only or ALL if not _run(ALL[name], options)]
    return 1 if failed else 0


def _report(folder, docs):
    from benchmarks import picture  # needs matplotlib

    results = report.load(folder, ALL)
    if not results:
        print(f"there are no results in {folder}: run python -m benchmarks", file=sys.stderr)
        return 1
    report.write(results, docs)
    picture.draw(results, docs / report.PICTURE)
    return 0


def _run(row, options):
    """Run one row; returns whether we ourselves took part in it to the end."""
    print(f"==> {row.name}: {row.title}", flush=True)
    if why := row.missing():
        print(f"skipped: {why}", flush=True)
        return True
    result = {**run_row(row, options.quick, options.install), "machine": machine.describe()}
    path = options.results / f"{row.name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(summary.text(result), flush=True)
    return not any(name.startswith("agentlace") for name in result["absent"])


if __name__ == "__main__":
    sys.exit(main())
