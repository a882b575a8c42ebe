"""Runs rows: every contestant in turn, round after round, and what came out as plain values."""

import logging
import time

from benchmarks import machine, stats
from benchmarks.errors import BenchmarkError, RowTimeout
from benchmarks.stage import Stage

log = logging.getLogger(__name__)
QUICK_ROUNDS = 2


def run_row(row, quick=False, install=False):
    """Measure a row and return its result; what fails is told in it, and the others go on."""
    started = time.monotonic()
    result = {
        "row": row.name,
        "title": row.title,
        "quick": quick,
        "metrics": {
            m.name: {"unit": m.unit, "lower_is_better": m.lower_is_better} for m in row.metrics
        },
        "x_name": row.x_name,
        "notes": list(row.notes),
        "absent": {},
        "cases": [],
    }
    with Stage(row.bound_s, quick, install) as stage:
        try:
            measures = _open(row, stage, result["absent"])
            for case in row.cases:
                result["cases"].append(_run_case(row, case, measures, result["absent"], quick))
        except RowTimeout as error:
            result["notes"].append(f"incomplete: {error}")
    result["wall_s"] = round(time.monotonic() - started, 1)
    return result


def _open(row, stage, absent):
    measures = {}
    for contestant in row.contestants:
        try:
            measures[contestant.name] = contestant.open(stage)
        except RowTimeout:
            raise
        except BenchmarkError as error:
            log.warning("%s: %s is absent: %s", row.name, contestant.name, error)
            absent[contestant.name] = str(error)
    return measures


def _run_case(row, case, measures, absent, quick):
    """Measure the contestants in turn: one round each, then the next round."""
    rounds = {name: [] for name in measures if name not in case.without}
    for number in range((QUICK_ROUNDS if quick else case.rounds) + 1):
        params = case.params if number else {**case.params, **case.warmup}
        for name in [name for name in rounds if name in measures]:
            if row.rests:
                machine.rest()
            try:
                samples = measures[name](**params)
            except RowTimeout:
                raise
            except BenchmarkError as error:
                log.warning("%s, %s: %s failed: %s", row.name, case.name, name, error)
                absent[name] = f"in {case.name}: {error}"
                del measures[name], rounds[name]
                continue
            if number:
                rounds[name].append({key: stats.of_round(s) for key, s in samples.items() if s})
    return _case_result(row, case, rounds)


def _case_result(row, case, rounds):
    contestants = {
        name: {
            metric.name: stats.of_rounds([numbers[metric.name] for numbers in measured])
            for metric in row.metrics
            if measured and metric.name in measured[0]
        }
        for name, measured in rounds.items()
    }
    lower = {metric.name: metric.lower_is_better for metric in row.metrics}
    goals = [_judge(goal, contestants, lower[goal.metric]) for goal in case.goals]
    return {"case": case.name, "x": case.x, "contestants": contestants, "goals": goals}


def _judge(goal, contestants, lower_is_better):
    """Return a goal with what came of it; ``reached`` is None if there is nobody to compare."""
    verdict = {
        "text": goal.text,
        "least": goal.least,
        "most": goal.most,
        "unit": "x" if goal.below else "",
        "value": None,
        "iqr": None,
        "reached": None,
    }
    above = _best(goal.above, goal.metric, contestants, lower_is_better)
    below = _best(goal.below, goal.metric, contestants, lower_is_better)
    if above is None or (goal.below and below is None):
        return verdict
    tops = _rounds(contestants, above, goal.metric, goal.above_stat)
    bottoms = (
        _rounds(contestants, below, goal.metric, goal.below_stat) if below else [1] * len(tops)
    )
    found = stats.ratio(tops, bottoms)
    bound_kept = (goal.least is None or found["value"] >= goal.least) and (
        goal.most is None or found["value"] <= goal.most
    )
    return {**verdict, **found, "above": above, "below": below, "reached": bound_kept}


def _rounds(contestants, name, metric, stat):
    return [numbers[stat] for numbers in contestants[name][metric]["rounds"]]


def _best(names, metric, contestants, lower_is_better):
    """Return the name of the contestant that did best, None if none of them is here."""
    here = [name for name in names if metric in contestants.get(name, {})]
    best = min if lower_is_better else max
    return best(here, key=lambda name: contestants[name][metric]["median"], default=None)
