"""What distribution does to learning: a section of ``docs/performance.md`` and ``learning.png``."""

import statistics

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from benchmarks import report
from benchmarks.learning import BOUND_S, BOUND_S_PER_STEP, MODES
from benchmarks.summary import number

PICTURE = "learning.png"
BEGIN = "<!-- Made from benchmarks/results/learning.json by: python -m benchmarks.learning -->"
END = "<!-- End of what is made from learning.json -->"
COLOURS = {"two processes": "#1f5fa8", "one process": "#c0583a"}
POINTS = 500


def write(runs, settings, folder):
    """Replace the section of a folder's page, and draw its picture.

    Args:
        runs: By mode and seed.
        settings: What they have in common.
        folder: Of the page.
    """
    seeds = sorted({seed for _, seed in runs})
    report.fill(folder / report.PAGE, BEGIN, END, _sections(runs, settings, seeds))
    _draw(runs, settings, seeds, folder / PICTURE)


def _sections(runs, settings, seeds):
    yield "## Learning, in two processes and in one"
    yield f"![Returns of both as they learn]({PICTURE})"
    command = (
        f"python -m benchmarks.learning --steps {settings['steps']} "
        f"--seeds {' '.join(map(str, seeds))} --env {settings['env']}"
    )
    yield f"```\n.venv/bin/{command}\n```"
    yield _explanation(settings)
    yield _table(runs, seeds)
    rows = [{**run, "row": f"{mode} {seed}"} for (mode, seed), run in sorted(runs.items())]
    yield "Where this was measured, mode and seed:"
    yield report.machines(rows)


def _explanation(settings):
    steps, utd_ratio = settings["steps"], settings["utd_ratio"]
    bound_s = BOUND_S + BOUND_S_PER_STEP * steps
    return (
        "Distribution must not cost learning. The same program, "
        "`examples/async_learner_actor.py`, runs as *two processes*, a learner and an actor over "
        "an embedded broker of their own, and as *one process*, the same learner and actor as two "
        "threads that share the replay buffer, without a broker.\n\n"
        f"Equal in both: the agent, its settings and its seed; {steps:,} steps of "
        f"{settings['env']}, the first {settings['random_steps']:,} of them random; "
        f"{utd_ratio} update a step, on {settings['batch_size']} transitions each, "
        f"{steps * utd_ratio:,} in all, which is checked after each run; a new policy every "
        f"{settings['steps_per_update']} updates; an actor that waits while its learner has more "
        f"than {settings['max_ahead']} steps still to learn from; one thread of linear algebra a "
        "process, no accelerator. Never do two runs share the machine. The wall-clock time "
        f"includes imports and compilation; a run that took {bound_s:,.0f} s would be ended.\n\n"
        "The final return is the mean of the last ten episodes, played with exploration. Two runs "
        "of one seed in one mode differ too, since actor and learner take turns as it happens: "
        "only the means over the seeds say something, and only in view of how far the seeds lie "
        "apart."
    )


def _table(runs, seeds):
    whole = [seed for seed in seeds if all((mode, seed) in runs for mode in MODES)]
    rows = [_row(str(seed), [runs.get((mode, seed)) for mode in MODES]) for seed in seeds]
    if len(whole) > 1:
        means = [_mean([runs[mode, seed] for seed in whole]) for mode in MODES]
        rows.append(_row("mean", means))
    two, one = MODES
    head = [
        "seed",
        f"final return, {two}",
        f"final return, {one}",
        "ratio",
        f"wall-clock, {two}",
        f"wall-clock, {one}",
        "ratio",
    ]
    return report.table(head, rows)


def _mean(runs):
    return {
        key: statistics.mean(run[key] for run in runs)
        for key in ("final_return", "wall_s")
        if all(run[key] is not None for run in runs)
    }


def _row(name, pair):
    cells = [name]
    for key, unit in (("final_return", ""), ("wall_s", " s")):
        values = [run.get(key) if run else None for run in pair]
        cells += ["-" if value is None else f"{value:,.0f}{unit}" for value in values]
        # Between returns of which one is not positive, a ratio has no meaning.
        told = all(value is not None and value > 0 for value in values)
        cells.append(f"{number(values[0] / values[1])}x" if told else "-")
    return cells


def _draw(runs, settings, seeds, path):
    """Draw for each mode the mean over its seeds, the band that they fill, and each of them."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for mode, colour in COLOURS.items():
        curves = [runs[mode, seed]["curve"] for seed in seeds if (mode, seed) in runs]
        curves = [np.array(curve).T for curve in curves if curve]
        if not curves:
            continue
        for curve in curves:
            axes.plot(*curve, color=colour, linewidth=0.6, alpha=0.6)
        steps, values = _aligned(curves)
        axes.fill_between(
            steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
        label = mode if len(curves) == 1 else f"{mode}, mean of {len(curves)} seeds"
        axes.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=label)
    title = f"SAC on {settings['env']}, {settings['utd_ratio']} update a step"
    axes.set(title=title, xlabel="environment steps", ylabel="episode return")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _aligned(curves):
    """Return steps (N,) at which all curves are known, and their returns there (curves, N)."""
    first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    steps = np.linspace(first, last, POINTS)
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])
