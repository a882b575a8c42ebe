"""``docs/performance.md``: its generated part is made of the results, the rest is left alone."""

import json

from benchmarks.summary import bound, number

PAGE, PICTURE = "performance.md", "performance.png"
BEGIN = "<!-- Made from benchmarks/results by: python -m benchmarks --report -->"
END = "<!-- End of what is made from the results -->"
_REACHED = {True: "reached", False: "**not reached**", None: "not measured"}


def load(folder, names):
    """Return the results that are there, in the order of the rows."""
    paths = [folder / f"{name}.json" for name in names]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def write(results, folder):
    """Replace the generated part of a folder's page."""
    fill(folder / PAGE, BEGIN, END, _sections(results))


def fill(page, begin, end, paragraphs):
    """Replace what is between two marks of a page; where they are not yet, append them."""
    text = page.read_text() if page.exists() else "# Performance"
    before, found, rest = text.partition(begin)
    if not found:
        before = f"{before.rstrip()}\n\n"
    after = rest.partition(end)[2]
    text = "\n\n".join([begin, *paragraphs, end])
    page.write_text(f"{before}{text}{after.rstrip()}\n")


def _sections(results):
    yield f"![Every goal, and how cost grows]({PICTURE})"
    yield from ("## Goals", _goals(results))
    yield from ("## Measurements", _legend())
    for result in results:
        yield f"### {result['title'][0].upper()}{result['title'][1:]}"
        yield _curve(result) if result["x_name"] else _measured(result)
        yield from _remarks(result)
    yield from ("## Where this was measured", machines(results))


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _goals(results):
    rows = [
        [result["title"], case["case"], goal["text"], bound(goal), _found(goal), _verdict(goal)]
        for result in results
        for case in result["cases"]
        for goal in case["goals"]
    ]
    return table(["work", "case", "what is compared", "goal", "measured", ""], rows)


def _verdict(goal):
    return _REACHED[goal["reached"]]


def _found(goal):
    if goal["value"] is None:
        return "-"
    low, high = map(number, goal["iqr"])
    return f"{number(goal['value'])}{goal['unit']} ({low} to {high})"


def _legend():
    return (
        "Each number is the middle one of several rounds, in parentheses the quartiles over the "
        "rounds. p99 is within a round, and there too the middle round counts. Ratios are taken "
        "within each round, so they need not equal the quotient of two medians."
    )


def _measured(result):
    rows = []
    for case in result["cases"]:
        for name, metrics in case["contestants"].items():
            for metric, numbers in metrics.items():
                unit = result["metrics"][metric]["unit"]
                low, high = map(number, numbers["iqr"])
                p99 = number(numbers["p99"]) if numbers["samples"] > len(numbers["rounds"]) else "-"
                middle = f"{number(numbers['median'])} {unit} ({low} to {high})"
                rows.append([case["case"], name, _label(result, metric), middle, p99])
    return table(["case", "who", "what", "median", "p99"], rows)


def _label(result, metric):
    return metric.rsplit("_", 1)[0].replace("_", " ") if len(result["metrics"]) > 1 else "-"


def _curve(result):
    columns = [
        (name, metric)
        for name in result["cases"][0]["contestants"]
        for metric in result["cases"][0]["contestants"][name]
    ]
    heads = [f"{name}, {result['metrics'][metric]['unit']}" for name, metric in columns]
    rows = [
        [case["case"], *(_at(case["contestants"], name, metric) for name, metric in columns)]
        for case in result["cases"]
    ]
    return table([result["x_name"], *heads], rows)


def _at(contestants, name, metric):
    found = contestants.get(name, {}).get(metric)
    return number(found["median"]) if found else "-"


def _remarks(result):
    remarks = [f"{name} is absent: {why}" for name, why in result["absent"].items()]
    remarks += result["notes"]
    if result["quick"]:
        remarks.append("Measured with --quick: few rounds and small sizes; not a result.")
    if remarks:
        yield "\n".join(f"- {remark}" for remark in remarks)


def machines(results):
    """Return one line for each machine and commit that a result came from."""
    lines = {}
    for result in results:
        found = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        line = (
            f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, "
            f"{found['system']}, Python {found['python']}, commit {found['commit']}; {versions}"
        )
        lines.setdefault(line, []).append((result["row"], found["date"][:10]))
    return "\n".join(
        f"- {line}: {', '.join(name for name, _ in rows)} ({rows[0][1]})"
        for line, rows in lines.items()
    )
