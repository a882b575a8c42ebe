"""``performance.png``: every goal with what was reached, and the curves."""

import textwrap

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLOURS = {True: "#2a7f62", False: "#c0583a"}
LINES = {"agentlace": "#1f5fa8", "earlier wire": "#c0583a", "list echo": "#8a8a8a"}
OTHER = "#6a4c93"
FAR = 20.0
"""How far beyond its goal a value is drawn at most: a drift may be nothing at all."""
COLUMNS = 3
WIDTH_IN, BAR_IN, CURVE_IN, MARGIN_IN = 13.0, 0.22, 3.4, 1.0


def draw(results, path):
    """Draw the goals above and the curves below them."""
    goals = [
        (f"{result['row']}, {case['case']}: {goal['text']}", goal)
        for result in results
        for case in result["cases"]
        for goal in case["goals"]
        if goal["value"] is not None
    ]
    curves = [
        (result, metric) for result in results if result["x_name"] for metric in result["metrics"]
    ]
    heights = [MARGIN_IN + BAR_IN * len(goals), CURVE_IN * -(-len(curves) // COLUMNS) or 0.1]
    figure = plt.figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    _draw_goals(above.subplots(), goals)
    if curves:
        axes = [*below.subplots(-(-len(curves) // COLUMNS), COLUMNS, squeeze=False).flat]
        for panel, curve in zip(axes, curves, strict=False):
            _draw_curve(panel, *curve)
        for panel in axes[len(curves) :]:
            panel.set_axis_off()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _progress(goal, value):
    """Return how far a value is on its way to the goal: 1 is there, more is better."""
    if goal["least"] is not None:
        return value / goal["least"]
    return goal["most"] / max(value, goal["most"] / FAR)


def _draw_goals(axes, goals):
    for place, (_, goal) in enumerate(goals):
        value = _progress(goal, goal["value"])
        low, high = sorted(_progress(goal, edge) for edge in goal["iqr"])
        spread = [[max(0, value - low)], [max(0, high - value)]]
        axes.plot([1, value], [place, place], color=COLOURS[goal["reached"]], linewidth=5)
        axes.errorbar(value, place, xerr=spread, color="black", linewidth=1, fmt="o", ms=3)
    axes.set_yticks(range(len(goals)), [text for text, _ in goals], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "share of the goal (right of the line: reached), with quartiles over the rounds"
    )
    axes.margins(y=0.02)


def _draw_curve(axes, result, metric):
    for name in result["cases"][0]["contestants"]:
        points = [
            (case["x"], case["contestants"][name][metric])
            for case in result["cases"]
            if metric in case["contestants"].get(name, {})
        ]
        if not points:
            continue
        x = [place for place, _ in points]
        colour = LINES.get(name, OTHER)
        axes.plot(x, [found["median"] for _, found in points], "o-", ms=3, label=name, color=colour)
        low, high = zip(*[found["iqr"] for _, found in points], strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if min(case["x"] for case in result["cases"]) > 0:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=result["x_name"], ylabel=result["metrics"][metric]["unit"])
    axes.set_title(textwrap.fill(result["title"], 52), fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
