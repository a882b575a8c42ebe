"""A result in a few lines, for the terminal."""


def number(value):
    """Return three significant digits, with separators."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bound(goal):
    """Return ``≥ 2.5x``."""
    sign, limit = ("≥", goal["least"]) if goal["least"] is not None else ("≤", goal["most"])
    return f"{sign} {limit:g}{goal['unit']}"


def verdict(goal):
    """Return ``2.31x (goal ≥ 2.5x): not reached``."""
    if goal["value"] is None:
        return f"nobody to compare with (goal {bound(goal)})"
    said = "reached" if goal["reached"] else "not reached"
    return f"{number(goal['value'])}{goal['unit']} (goal {bound(goal)}): {said}"


def text(result):
    lines = [f"    absent: {name}: {why}" for name, why in result["absent"].items()]
    for case in result["cases"]:
        lines.append(f"    {case['case']}")
        for name, metrics in case["contestants"].items():
            for metric, numbers in metrics.items():
                unit = result["metrics"][metric]["unit"]
                low, high = numbers["iqr"]
                lines.append(
                    f"        {name:18} {number(numbers['median']):>9} {unit}"
                    f"  p99 {number(numbers['p99'])}  rounds {number(low)} to {number(high)}"
                    + (f"  [{metric}]" if len(result["metrics"]) > 1 else "")
                )
        lines += [f"      → {goal['text']}: {verdict(goal)}" for goal in case["goals"]]
    lines += [f"    note: {note}" for note in result["notes"]]
    return "\n".join([*lines, f"    {result['wall_s']} s"])
